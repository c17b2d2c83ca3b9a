"""Results kept under a hash of all that determines them, so that asking again costs nothing.

An entry is a folder of files. It appears whole or not at all, and its files are never written to: who takes one gets
links to them (copies where the file system has no hard links). The whole cache is safe to delete.
"""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from osft.workspace import as_json, sync_directory

logger = logging.getLogger(__name__)

# What link() answers where a file system has no hard links, or the two paths lie on different ones.
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the sha256 of ``parts``, which must be JSON; the order of keys does not matter."""
    return hashlib.sha256(orjson.dumps(as_json(dict(parts)), option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class ContentCache:
    """A folder of entries, one for each key."""

    root: Path

    def entry(self, key: str) -> Path:
        """Return the folder of ``key``, which exists if it is kept."""
        return self.root / key

    def take(self, key: str, output: Path, names: Iterable[str]) -> bool:
        """Link the files ``names`` kept under ``key`` into ``output``, in this order; return whether there are any."""
        entry = self.entry(key)
        if not entry.is_dir():
            return False
        link_files([entry / name for name in names], output)
        logger.info("taken from the cache: %s", entry)
        return True

    def keep(self, key: str, files: Iterable[Path]) -> None:
        """Keep ``files`` under ``key``; another process that was faster wins."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=self.root, prefix=".partial-"))
        partial.chmod(0o775)
        link_files(files, partial)
        try:
            partial.rename(self.entry(key))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(partial)
        sync_directory(self.root)


def link_files(files: Iterable[Path], output: Path) -> None:
    """Give ``files`` a second name in the folder ``output``, replacing what has that name there."""
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        temporary = output / f".{file.name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(file)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copy2(file, temporary)
        temporary.replace(output / file.name)
    sync_directory(output)
