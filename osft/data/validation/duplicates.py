"""Rows that are there more than once, found by their hashes without keeping them in memory.

Equal are rows in which the same is trained (:mod:`osft.data.increments.row_hash`). Each leaves a record of 32 bytes in
one of several files, chosen by the first bits of its hash, so that equal rows meet in one file. In the end one file
after the other is sorted, and what is sorted goes into the file by which later runs know these rows. The number of
files follows from the size of the rows' file, so that one of them fits in memory whatever that is. Two rows are
compared by 64 bits of their hashes here: those of two different rows of ten million are equal with a probability below
1 in 100,000.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osft.data.increments.seen_rows import HashParts, write_seen_rows

ROW_RECORD = np.dtype([("hash", "<u8"), ("rest", "<u8"), ("line", "<i8"), ("offset", "<i8")])
DUPLICATE_RECORD = np.dtype([("line", "<i8"), ("offset", "<i8"), ("first_line", "<i8")])
# A file of hashes for each of these: 4 million of the shortest rows, 130 MB of records, if every row is that short.
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


def row_records(hashes: tuple[HashParts, HashParts], lines: Sequence[int], offsets: Sequence[int]) -> NDArray[np.void]:
    """Return :data:`ROW_RECORD` for rows, each of the arguments having one value a row."""
    records = np.empty(len(lines), dtype=ROW_RECORD)
    records["hash"], records["rest"] = hashes
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

    def find(self, most: int, seen_rows: Path) -> Duplicates:
        """Return the rows that equal an earlier one, of them the first ``most`` by name.

        The hashes of all rows go to the file ``seen_rows``.
        """
        rows = 0
        first = np.empty(0, dtype=DUPLICATE_RECORD)
        with write_seen_rows(seen_rows) as seen:
            for file in self._files:
                file.flush()
                file.seek(0)
                records = np.fromfile(file, dtype=ROW_RECORD)
                order = np.argsort(records["hash"], kind="stable")
                seen.add(records["hash"][order], records["rest"][order])
                repeated, found = _equal_to_earlier(records, order, most)
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


def _equal_to_earlier(records: NDArray[np.void], order: NDArray[np.intp], most: int) -> tuple[int, NDArray[np.void]]:
    """Return how many records have the hash of an earlier one, and :data:`DUPLICATE_RECORD` of the first ``most``.

    Args:
        records: in the order of lines.
        order: that of their hashes, and of lines among equal ones.
        most: more are counted only.
    """
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
