"""Which rows are held out, decided by the rows themselves, and the parquet file of each side.

A row's side is a function of the seed and of what is trained in it: duplicates fall on the same side, so no held-out
row is also trained, and a row keeps its side when the dataset grows.
"""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from osft.data.processing.tokenizing import EncodedBatch, TokenArray
from osft.data.samples import count_trained

KEY_BYTES = 8
KEYS = 2 ** (8 * KEY_BYTES)
# About 8 MB of ids and labels a row group.
ROW_GROUP_TOKENS = 1 << 20
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """What one parquet file holds."""

    rows: int
    tokens: int
    trained_tokens: int
    """Labels that count: not -100, and not the first of a row, which nothing predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthReport:
    """Lengths in tokens, of rows or documents as they came."""

    min: int
    mean: float
    median: int
    p95: int
    max: int


def split_key(content: bytes, seed: int) -> int:
    """Return 64 bits that ``content`` and ``seed`` determine."""
    digest = blake2b(f"{seed}\0".encode() + content, digest_size=KEY_BYTES)
    return int.from_bytes(digest.digest(), "big")


def holdout_threshold(fraction: float, lowest_key: int = 0, highest_key: int = KEYS - 1) -> int:
    """Return the key below which a row is held out.

    With two distinct keys or more, at least one row falls on each side, whatever ``fraction`` says; with one, none
    is held out.

    Args:
        fraction: expected share of held-out rows, 0 to 1; 0 holds none out.
        lowest_key: smallest key of the rows.
        highest_key: largest key of the rows.
    """
    if fraction == 0.0 or lowest_key == highest_key:
        return 0
    return min(max(int(fraction * KEYS), lowest_key + 1), highest_key)


def describe_lengths(lengths: Counter[int]) -> LengthReport:
    """Summarize ``lengths`` (length -> number of rows), which must not be empty."""
    values = np.array(sorted(lengths), dtype=np.int64)
    counts = np.array([lengths[int(value)] for value in values], dtype=np.int64)
    cumulated = np.cumsum(counts)
    total = int(cumulated[-1])
    median, p95 = (int(values[np.searchsorted(cumulated, total * share)]) for share in (0.5, 0.95))
    mean = float(values @ counts) / total
    return LengthReport(min=int(values[0]), mean=round(mean, 2), median=median, p95=p95, max=int(values[-1]))


def length_histogram(lengths: Counter[int]) -> dict[str, int]:
    """Return the rows of ``lengths`` by upper bound, the powers of two: ``{"64": 3}`` is 3 rows of 33 to 64 tokens."""
    histogram: Counter[int] = Counter()
    for length, rows in lengths.items():
        histogram[1 << max(length - 1, 0).bit_length()] += rows
    return {str(bound): histogram[bound] for bound in sorted(histogram)}


class SplitWriter:
    """Writes the rows of one side, a row group at a time."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """Write to ``writer``, which the caller closes if :meth:`close` is not reached."""
        self._writer = writer
        self._buffer: list[tuple[TokenArray, TokenArray, Integers, Integers]] = []
        self._buffered_tokens = 0
        self.rows = 0
        self.tokens = 0
        self.trained_tokens = 0

    def add(self, input_ids: TokenArray, labels: TokenArray, lengths: Integers, lines: Integers) -> None:
        """Append rows.

        Args:
            input_ids: ``[tokens]``, the rows one behind the other.
            labels: ``[tokens]``.
            lengths: ``[rows]``, each at least 1.
            lines: ``[rows]``.
        """
        if not len(lengths):
            return
        self._buffer.append((input_ids, labels, lengths, lines))
        self._buffered_tokens += len(input_ids)
        if self._buffered_tokens >= ROW_GROUP_TOKENS:
            self._flush()

    def close(self) -> SplitReport:
        """Write what is left and the parquet footer."""
        if self._buffer:
            self._flush()
        self._writer.close()
        return SplitReport(rows=self.rows, tokens=self.tokens, trained_tokens=self.trained_tokens)

    def _flush(self) -> None:
        input_ids, labels, lengths, lines = (np.concatenate(parts) for parts in zip(*self._buffer, strict=True))
        trained = count_trained(labels, lengths)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(input_ids, pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(labels, pa.int32())),
            pa.array(lines, pa.int64()),
            pa.array(lengths, pa.int32()),
            pa.array(trained, pa.int32()),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._writer.schema))
        self.rows += len(lengths)
        self.tokens += len(input_ids)
        self.trained_tokens += int(trained.sum())
        self._buffer = []
        self._buffered_tokens = 0


class RowSide:
    """One side of the split whose rows are the rows of the source."""

    def __init__(self, writer: SplitWriter) -> None:
        """Write to ``writer``."""
        self._writer = writer

    def add(self, batch: EncodedBatch) -> None:
        """Write the rows of ``batch``."""
        self._writer.add(batch.input_ids, batch.labels, batch.lengths, batch.lines)

    def close(self) -> SplitReport:
        """Finish the file."""
        return self._writer.close()


class BlockSide:
    """One side of the split whose documents are put one behind the other and cut into blocks.

    The last block, shorter than the others, is kept, unless it is a single token, which nothing would predict. A
    block's row is the line of the document that its first token comes from.
    """

    def __init__(self, writer: SplitWriter, block_size: int) -> None:
        """Cut into blocks of ``block_size`` tokens and write them to ``writer``."""
        self._writer = writer
        self._block_size = block_size
        self._tokens = np.empty(0, np.int32)
        self._line = 0

    def add(self, batch: EncodedBatch) -> None:
        """Append documents and write the blocks that they complete."""
        tokens = np.concatenate([self._tokens, batch.input_ids])
        # Where each document starts; what is left of an earlier one comes first.
        starts = np.cumsum([0, len(self._tokens), *batch.lengths])[:-1]
        lines = np.concatenate([[self._line], batch.lines])
        whole = len(tokens) // self._block_size * self._block_size
        firsts = np.arange(0, whole + 1, self._block_size)
        block_lines = lines[np.searchsorted(starts, firsts, side="right") - 1]
        blocks = tokens[:whole]
        self._writer.add(blocks, blocks, np.full(len(firsts) - 1, self._block_size), block_lines[:-1])
        self._tokens, self._line = tokens[whole:], int(block_lines[-1])

    def close(self) -> SplitReport:
        """Write the last, partial block and finish the file."""
        if len(self._tokens) > 1:
            self._writer.add(self._tokens, self._tokens, np.array([len(self._tokens)]), np.array([self._line]))
        return self._writer.close()
