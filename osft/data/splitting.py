"""Which rows are held out, decided by the rows themselves, and the parquet file of each side.

A row's side is a function of the seed and of what is trained in it: duplicates fall on the same side, so no held-out
row is also trained, and a row keeps its side when the dataset grows.
"""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osft.data.rows import IGNORED_LABEL
from osft.data.samples import SCHEMA
from osft.data.tokenizing import EncodedRow, TokenArray

KEY_BYTES = 8
KEYS = 2 ** (8 * KEY_BYTES)
# About 8 MB of ids and labels a row group.
ROW_GROUP_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """What one parquet file holds."""

    rows: int
    tokens: int
    trained_tokens: int


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


class SplitWriter:
    """Writes the rows of one side, a row group at a time."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """Write to ``writer``, which the caller closes if :meth:`close` is not reached."""
        self._writer = writer
        self._buffer: list[tuple[TokenArray, TokenArray, int]] = []
        self._buffered_tokens = 0
        self.rows = 0
        self.tokens = 0
        self.trained_tokens = 0

    def add(self, input_ids: TokenArray, labels: TokenArray, line: int) -> None:
        """Append one row."""
        self._buffer.append((input_ids, labels, line))
        self._buffered_tokens += len(input_ids)
        self.rows += 1
        self.tokens += len(input_ids)
        self.trained_tokens += int((labels != IGNORED_LABEL).sum())
        if self._buffered_tokens >= ROW_GROUP_TOKENS:
            self._flush()

    def close(self) -> SplitReport:
        """Write what is left and the parquet footer."""
        if self._buffer:
            self._flush()
        self._writer.close()
        return SplitReport(rows=self.rows, tokens=self.tokens, trained_tokens=self.trained_tokens)

    def _flush(self) -> None:
        input_ids, labels, lines = zip(*self._buffer, strict=True)
        columns = [_list_column(input_ids), _list_column(labels), pa.array(lines, pa.int64())]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._buffer = []
        self._buffered_tokens = 0


class RowSide:
    """One side of the split whose rows are the rows of the source."""

    def __init__(self, writer: SplitWriter) -> None:
        """Write to ``writer``."""
        self._writer = writer

    def add(self, row: EncodedRow) -> None:
        """Write one row."""
        self._writer.add(row.input_ids, row.labels, row.line)

    def close(self) -> SplitReport:
        """Finish the file."""
        return self._writer.close()


class BlockSide:
    """One side of the split whose documents are put one behind the other and cut into blocks.

    The last block, shorter than the others, is kept, unless it is a single token, which nothing would predict. A
    block's row is the line of the document
    that its first token comes from.
    """

    def __init__(self, writer: SplitWriter, block_size: int) -> None:
        """Cut into blocks of ``block_size`` tokens and write them to ``writer``."""
        self._writer = writer
        self._block_size = block_size
        self._pieces: list[EncodedRow] = []
        self._pending_tokens = 0

    def add(self, row: EncodedRow) -> None:
        """Append a document and write the blocks that it completes."""
        self._pieces.append(row)
        self._pending_tokens += len(row.input_ids)
        if self._pending_tokens >= self._block_size:
            self._cut()

    def close(self) -> SplitReport:
        """Write the last, partial block and finish the file."""
        if self._pending_tokens > 1:
            tokens = np.concatenate([piece.input_ids for piece in self._pieces])
            self._writer.add(tokens, tokens, self._pieces[0].line)
        return self._writer.close()

    def _cut(self) -> None:
        """Write the whole blocks and keep the rest, which lies in the last document."""
        tokens = np.concatenate([piece.input_ids for piece in self._pieces])
        starts = np.cumsum([0, *(len(piece.input_ids) for piece in self._pieces)])
        whole = len(tokens) // self._block_size * self._block_size
        for start in range(0, whole, self._block_size):
            piece = self._pieces[int(np.searchsorted(starts, start, side="right")) - 1]
            block = tokens[start : start + self._block_size]
            self._writer.add(block, block, piece.line)
        last, rest = self._pieces[-1], tokens[whole:]
        self._pending_tokens = len(rest)
        kept = EncodedRow(line=last.line, key=last.key, input_ids=rest, labels=rest)
        self._pieces = [kept] if len(rest) else []


def _list_column(rows: tuple[TokenArray, ...]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows), pa.int32()))
