"""Removing folders so that a name never stands for half of what it was.

A folder is renamed aside first, to a name that nothing looks for, and deleted then. What a killed removal left aside
is found by its name and removed by the next one.
"""

import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from osft.workspace import sync_directory

ASIDE = ".removed."
"""In the names of folders that are being removed."""


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield a folder and everything in it, without what another process removes meanwhile.

    ``Path.glob`` fails where a folder vanishes that it is about to list.

    Raises:
        OSError: if a folder cannot be listed for another reason; that nothing is there must not follow from it.
    """
    for parent, _, names in os.walk(folder, onerror=_raise_unless_gone):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            if status := _status(path):
                yield path, status


def size_of(*paths: Path) -> int:
    """Return how many bytes the removal of files and folders gives back; 0 if they are gone.

    A file is gone with the last of its names: one that also has a name elsewhere, as linked steps do, counts nothing.
    """
    files = {}
    names: Counter[tuple[int, int]] = Counter()
    for path in paths:
        for status in _files(path):
            file = (status.st_dev, status.st_ino)
            files[file] = status
            names[file] += 1
    return sum(status.st_size for file, status in files.items() if names[file] >= status.st_nlink)


def remove_folder(folder: Path) -> bool:
    """Remove a folder; return whether this process did, and not another one at the same moment."""
    # What is itself aside already gets no longer name with each try.
    prefix = f".{folder.name.lstrip('.').partition(ASIDE)[0]}{ASIDE}"
    while folder.exists():
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            folder.rename(aside / folder.name)
        except FileNotFoundError:
            # Another process has renamed the folder, or has taken the new one beside it for a leftover.
            delete(aside)
            continue
        sync_directory(folder.parent)
        delete(aside)
        return True
    return False


def delete(folder: Path) -> None:
    """Delete a folder that no name of ours stands for any more, also while another process deletes it."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            # The other process was faster at one of the files; what is left is looked at again.
            continue


def left_aside(parent: Path) -> list[Path]:
    """Return what killed removals have left in ``parent``."""
    return sorted(path for path in parent.glob(f".*{ASIDE}*") if path.is_dir())


def _files(path: Path) -> Iterator[os.stat_result]:
    """Yield a file, or every file in a folder, once for each of its names there."""
    status = _status(path)
    if status and stat.S_ISREG(status.st_mode):
        yield status
    else:
        yield from (status for _, status in walk(path) if stat.S_ISREG(status.st_mode))


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
