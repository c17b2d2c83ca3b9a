"""Removing folders so that a name never stands for half of what it was.

A folder is renamed aside first, to a name that nothing looks for, and deleted then. What a killed removal left aside
is found by its name and removed by the next one.
"""

import shutil
import tempfile
from pathlib import Path

from osft.workspace import sync_directory

ASIDE = ".removed."
"""In the names of folders that are being removed."""


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def remove_folder(folder: Path) -> None:
    """Remove a folder; that another process removes it at the same moment is no error."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name.lstrip('.')}{ASIDE}"))
    try:
        folder.rename(aside / folder.name)
    except FileNotFoundError:
        # The other process has renamed it, and what is wanted is done.
        aside.rmdir()
        return
    sync_directory(folder.parent)
    delete(aside)


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
