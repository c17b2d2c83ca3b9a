"""The hashes of what became of a run's rows, which its model's descendants go by.

Taken are the rows that are trained or held out. The held-out ones are noted once more by themselves, since no
descendant must ever be trained on them, also not when it is forced to take rows again. Those that were dropped as too
long stand apart: a later run with more room takes them, any other would only drop them again.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from osft.data.files import HELD_OUT_ROWS_NAME, TAKEN_ROWS_NAME, TOO_LONG_ROWS_NAME
from osft.data.processing.encoding import EncodedChunk
from osft.data.validation.duplicates import RowHashes, row_records


class TakenRows:
    """The hashes of one run's rows, on disk until the block that opened them ends."""

    def __init__(self, output: Path, size_bytes: int) -> None:
        """Prepare for a file of ``size_bytes``, whose hashes are to lie in ``output``."""
        self._output = output
        self._stack = ExitStack()
        names = (TAKEN_ROWS_NAME, HELD_OUT_ROWS_NAME, TOO_LONG_ROWS_NAME)
        self._hashes = {name: self._stack.enter_context(RowHashes(output, size_bytes)) for name in names}

    def __enter__(self) -> "TakenRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, chunk: EncodedChunk, threshold: int) -> None:
        """Note the rows of ``chunk``, of which those with a key below ``threshold`` are held out."""
        self._add(TOO_LONG_ROWS_NAME, chunk.dropped)
        for batch in chunk.kept:
            self._add(TAKEN_ROWS_NAME, batch.hashes)
            self._add(HELD_OUT_ROWS_NAME, batch.hashes[batch.keys < threshold])

    def write(self) -> None:
        """Write a file (:mod:`osft.data.increments.seen_rows`) of each kind of rows."""
        for name, hashes in self._hashes.items():
            hashes.find(0, self._output / name)

    def _add(self, name: str, hashes: NDArray[np.uint64]) -> None:
        # Where a row stands is of no interest here.
        nowhere = [0] * len(hashes)
        self._hashes[name].add(row_records((hashes[:, 0], hashes[:, 1]), nowhere, nowhere))
