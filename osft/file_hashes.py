"""The sha256 of files, remembered from run to run.

A model's weights are read once to be hashed (at 1 to 2 GB/s, when the disk gives them) and again only if they change.
A file counts as unchanged while its real path, size, inode and times of modification and of change are what they were;
that is what git's index goes by. Its racy case is ours too: a file that is written again within one tick of the file
system's clock keeps its times, so the hash of a file younger than ``SETTLED_NS`` is not remembered.

Files of the Hub's cache that are stored under their own sha256 are not read at all.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from osft.errors import EvaluationError, MissingPathError, one_line
from osft.workspace import read_json, sha256_of_file, write_json

logger = logging.getLogger(__name__)

SETTLED_NS = 2_000_000_000
"""Longer than a tick of any file system's clock; FAT and some network file systems tick every second or two."""

HUB_BLOB = re.compile(r"blobs/[0-9a-f]{64}")
"""How a large file ends in the Hub's cache; small ones are named by git's sha1, which is no hash of the bytes alone."""

MAX_THREADS = 4
"""hashlib lets go of the interpreter's lock; more threads than this only make a disk seek."""

COMPILED_FOLDER = "__pycache__"
"""Python leaves it beside a task's functions as it runs them; it says nothing that their source does not."""


def file_sha256s(
    paths: Sequence[Path], *, memo: Path | None, now_ns: Callable[[], int] = time.time_ns
) -> tuple[str, ...]:
    """Return the sha256 of each file's bytes, as hexadecimal text.

    Args:
        paths: the files; links are followed.
        memo: folder in which hashes are remembered, one small file each; None remembers none. One that cannot be
            written is a warning.
        now_ns: the clock of the files' times, in nanoseconds since 1970.

    Raises:
        EvaluationError: if a file cannot be read.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        hashes = tuple(threads.map(lambda path: _hash(path, memo, now_ns), paths))
    return hashes


def sha256_of_path(path: Path) -> str:
    """Return one sha256 over a file, or over the names and contents of all files in a folder.

    Raises:
        MissingPathError: if there is neither.
    """
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise MissingPathError(f"{path}: there is no such file or folder. Check eval_include_path and eval_probe.")
    digest = sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and COMPILED_FOLDER not in file.parts):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _hash(path: Path, memo: Path | None, now_ns: Callable[[], int]) -> str:
    try:
        real = path.resolve(strict=True)
        if HUB_BLOB.fullmatch("/".join(real.parts[-2:])):
            return real.name
        state = _state(real)
        note = memo / f"{sha256(os.fsencode(real)).hexdigest()}.json" if memo else None
        if note and (known := _remembered(note, state)):
            return known
        is_settled = now_ns() - max(state["mtime_ns"], state["ctime_ns"]) > SETTLED_NS
        digest = sha256_of_file(real)
        if note and is_settled and _state(real) == state:
            _remember(note, state, digest)
        return digest
    except OSError as error:
        raise EvaluationError(f"{path}: the file cannot be read ({one_line(error)}). Fetch the model again.") from error


def _state(path: Path) -> dict[str, int]:
    """Return what changes when a file does."""
    status = path.stat()
    return {
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _remembered(note: Path, state: dict[str, int]) -> str | None:
    """Return the hash in ``note`` if it is of the file as it is now."""
    try:
        content = read_json(note)
        return content["sha256"] if content["file"] == state else None
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s: no remembered hash (%s); the file is read again", note, one_line(error))
        return None


def _remember(note: Path, state: dict[str, int], digest: str) -> None:
    try:
        write_json(note, {"file": state, "sha256": digest})
    except OSError as error:
        logger.warning("%s: the hash cannot be remembered (%s)", note, one_line(error))
