"""The hashes of a run's rows in a file, and the question whether earlier runs had a row.

``seen_rows.bin`` holds ``n`` hashes of 16 bytes (:mod:`osft.data.increments.row_hash`) in two columns: the first eight
bytes of each as little-endian numbers, ascending, then the other eight in the same order. In a column of numbers a row
is found ten times faster than in one of 16-byte texts, and the file need not be read whole: it is mapped, so that the
processes of one machine share what was looked at. Ten million rows are 160 MB.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from osft.data.increments.row_hash import HASH_BYTES
from osft.errors import DataError, MissingPathError
from osft.workspace import atomic_file

HashParts = NDArray[np.uint64]
"""``[rows]``, the first or the last eight bytes of each hash."""

PART = np.dtype("<u8")


def split_hashes(hashes: bytes) -> tuple[HashParts, HashParts]:
    """Return first and last parts of hashes that stand one behind the other."""
    parts = np.frombuffer(hashes, dtype=PART).reshape(-1, 2)
    return np.ascontiguousarray(parts[:, 0]), np.ascontiguousarray(parts[:, 1])


class SeenRowsWriter:
    """Writes hashes that come in the order of their first parts."""

    def __init__(self, first: IO[bytes], last: IO[bytes]) -> None:
        """Write the first parts to ``first`` and keep the last ones in ``last``."""
        self._first = first
        self._last = last

    def add(self, first: HashParts, last: HashParts) -> None:
        """Append hashes; of equal ones that follow each other one stays.

        Args:
            first: ``[rows]``, ascending, all above those of the call before.
            last: ``[rows]``.
        """
        is_new = np.ones(len(first), dtype=bool)
        is_new[1:] = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
        self._first.write(first[is_new].astype(PART, copy=False).tobytes())
        self._last.write(last[is_new].astype(PART, copy=False).tobytes())


@contextmanager
def write_seen_rows(path: Path) -> Iterator[SeenRowsWriter]:
    """Yield what takes the hashes of ``path``, which appears when the block ends without an error."""
    with atomic_file(path) as file, TemporaryFile(dir=path.parent) as last:
        yield SeenRowsWriter(file, last)
        last.seek(0)
        shutil.copyfileobj(last, file)


class SeenRows:
    """The rows of earlier runs."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Map ``files``.

        Raises:
            MissingPathError: if one does not exist.
            DataError: if one is no file of hashes.
        """
        self._columns = [_map_columns(file) for file in files]

    def contain(self, first: HashParts, last: HashParts) -> NDArray[np.bool_]:
        """Return for each row whether an earlier run had it, ``[rows]``.

        Args:
            first: ``[rows]``, first parts of the hashes, in any order.
            last: ``[rows]``.
        """
        found = np.zeros(len(first), dtype=bool)
        # In order, neighbours are looked for in the same pages of the file.
        order = np.argsort(first)
        wanted, wanted_last = first[order], last[order]
        for file_first, file_last in self._columns:
            places = np.searchsorted(file_first, wanted)
            candidates = np.flatnonzero(places < len(file_first))
            # Nearly always one step: a second one needs two hashes in the file with equal first parts.
            while len(candidates):
                at = places[candidates]
                candidates = candidates[file_first[at] == wanted[candidates]]
                at = places[candidates]
                found[order[candidates[file_last[at] == wanted_last[candidates]]]] = True
                places[candidates] += 1
                candidates = candidates[places[candidates] < len(file_first)]
        return found


def _map_columns(file: Path) -> tuple[HashParts, HashParts]:
    if not file.is_file():
        raise MissingPathError(f"{file}: the hashes of an earlier run's rows are not there. Restore the file.")
    size_bytes = file.stat().st_size
    if size_bytes % HASH_BYTES:
        raise DataError(f"{file}: {size_bytes} bytes are no whole number of hashes of {HASH_BYTES}. Restore it.")
    # An empty file cannot be mapped.
    column: HashParts = np.memmap(file, dtype=PART, mode="r") if size_bytes else np.empty(0, dtype=np.uint64)
    rows = size_bytes // HASH_BYTES
    return column[:rows], column[rows:]
