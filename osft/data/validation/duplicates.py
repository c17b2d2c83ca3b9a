"""Rows that are there more than once, found by their hashes without keeping them in memory.

Each row leaves a record of 24 bytes in one of several files, chosen by the first bits of its hash, so that equal rows
meet in one file. In the end one file after the other is sorted. Their number follows from the size of the rows'
file, so that one of them fits in memory whatever that is. With 64 bits, two different rows of ten million have equal
hashes with a probability below 1 in 100,000.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 8
ROW_RECORD = np.dtype([("hash", "<u8"), ("line", "<i8"), ("offset", "<i8")])
DUPLICATE_RECORD = np.dtype([("line", "<i8"), ("offset", "<i8"), ("first_line", "<i8")])
# A file of hashes for each of these: 4 million of the shortest rows, 100 MB of records, if every row is that short.
BYTES_PER_FILE = 1 << 28
# Open files of a process are limited, often to 1,024.
MAX_FILES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Rows that equal an earlier one."""

    rows: int
    """How many they are, the first of each group not counted."""

    first: NDArray[np.void]
    """Of the first of them :data:`DUPLICATE_RECORD`, in the order of lines."""


def hash_row(raw: bytes) -> bytes:
    """Return the hash of a line, white space around it left out; :data:`HASH_BYTES` bytes."""
    return hashlib.blake2b(raw.strip(), digest_size=HASH_BYTES).digest()


def row_records(hashes: bytes, lines: Sequence[int], offsets: Sequence[int]) -> NDArray[np.void]:
    """Return :data:`ROW_RECORD` for rows whose hashes are ``hashes``, one behind the other."""
    records = np.empty(len(lines), dtype=ROW_RECORD)
    records["hash"] = np.frombuffer(hashes, dtype="<u8")
    records["line"] = lines
    records["offset"] = offsets
    return records


class RowHashes:
    """The hashes of the rows of one file, on disk until the block that opened them ends."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """Prepare for a file of ``size_bytes``; what is kept lies in a folder of its own below ``directory``."""
        self._bits = min(size_bytes // BYTES_PER_FILE, MAX_FILES - 1).bit_length()
        self._scratch = TemporaryDirectory(dir=directory, prefix=".hashes.")
        self._files = [(Path(self._scratch.name) / str(index)).open("w+b") for index in range(1 << self._bits)]

    def __enter__(self) -> "RowHashes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        self._scratch.cleanup()

    def add(self, records: NDArray[np.void]) -> None:
        """Keep :data:`ROW_RECORD` of rows that follow those before."""
        for index, part in self._parts(records):
            part.tofile(self._files[index])

    def find(self, most: int) -> Duplicates:
        """Return the rows that equal an earlier one, of them the first ``most`` by name."""
        rows = 0
        first = np.empty(0, dtype=DUPLICATE_RECORD)
        for file in self._files:
            file.flush()
            file.seek(0)
            repeated, found = _equal_to_earlier(np.fromfile(file, dtype=ROW_RECORD), most)
            rows += repeated
            first = np.sort(np.concatenate([first, found]), order="line")[:most]
        return Duplicates(rows=rows, first=first)

    def _parts(self, records: NDArray[np.void]) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yield the records of each file, in their order."""
        if not self._bits:
            yield 0, records
            return
        indices = records["hash"] >> np.uint64(64 - self._bits)
        order = np.argsort(indices, kind="stable")
        ends = np.cumsum(np.bincount(indices.astype(np.int64), minlength=len(self._files)))
        for index, part in enumerate(np.split(records[order], ends[:-1])):
            if len(part):
                yield index, part


def _equal_to_earlier(records: NDArray[np.void], most: int) -> tuple[int, NDArray[np.void]]:
    """Return how many records have the hash of an earlier one, and :data:`DUPLICATE_RECORD` of the first ``most``.

    Args:
        records: in the order of lines.
        most: more are counted only.
    """
    order = np.argsort(records["hash"], kind="stable")
    is_first = np.ones(len(records), dtype=bool)
    # Lines were written in order and the sort is stable, so the first of a group is the earliest.
    is_first[1:] = records["hash"][order[1:]] != records["hash"][order[:-1]]
    starts = np.flatnonzero(is_first)
    repeated = np.flatnonzero(~is_first)
    earliest = repeated[np.argsort(order[repeated], kind="stable")[:most]]
    found: NDArray[Any] = np.empty(len(earliest), dtype=DUPLICATE_RECORD)
    found["line"] = records["line"][order[earliest]]
    found["offset"] = records["offset"][order[earliest]]
    found["first_line"] = records["line"][order[starts[np.searchsorted(starts, earliest, side="right") - 1]]]
    return len(repeated), found
