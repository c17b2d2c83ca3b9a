"""Token rows as the trainer reads them: from ``train.parquet``, or from JSON Lines that the user tokenized.

Every row is checked as it is read: an id outside the embedding would only show as an opaque device error.

A run draws its rows in random order, epoch after epoch, so all tokens are kept in memory: 8 bytes each, an id and a
label, in arrays of many rows. A row becomes Python objects when it is taken. What steps are planned from, the lengths
and the trained tokens, are arrays beside them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from osft.data.files import TRAIN_NAME
from osft.data.validation.rows import IGNORED_LABEL, RowFacts, check_processed_row, describe_problem, parse_row
from osft.errors import DataError, MissingPathError

PARQUET_MAGIC = b"PAR1"
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        # Not shifted: an id where the loss counts, -100 elsewhere.
        ("labels", pa.list_(pa.int32())),
        # Line of the validated file, from 1.
        ("row", pa.int64()),
        # Of input_ids: with the next column all that a plan of the steps needs, without reading a token.
        ("length", pa.int32()),
        # Labels that are not -100, the first of a row left out: nothing predicts it.
        ("trained_tokens", pa.int32()),
    ]
)
# Read at once: some megabytes beside what is kept, and numpy's cost for each call does not show.
BLOCK_ROWS = 2048

Tokens = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
NOTHING: Integers = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One row to train on."""

    input_ids: Tokens
    """``[tokens]``."""

    labels: Tokens
    """``[tokens]``; an id where the loss counts, -100 elsewhere. Not shifted."""

    row: int
    """Line of the validated file, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBlock:
    """Consecutive rows, their tokens one behind the other."""

    input_ids: Tokens
    """``[tokens]``."""

    labels: Tokens
    """``[tokens]``."""

    lengths: Integers
    """``[rows]``, of both."""

    rows: Integers
    """``[rows]``: line of the validated file, from 1."""

    trained_tokens: Integers
    """``[rows]``, as :func:`count_trained` counts them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples(Sequence[Sample]):
    """Rows to train on, in arrays; an index gives a row of its own, whose arrays may be written to."""

    lengths: Integers
    """``[rows]``, tokens."""

    trained_tokens: Integers
    """``[rows]``: the labels that count, the first of a row left out."""

    rows: Integers
    """``[rows]``: line of the validated file, from 1."""

    starts: Integers
    """``[rows]``: place of a row's first token among those of all blocks."""

    blocks: tuple[tuple[Tokens, Tokens], ...]
    """Ids and labels of many rows each, one row behind the other."""

    block_starts: Integers
    """``[blocks]``: place of a block's first token among those of all blocks."""

    @classmethod
    def of_blocks(cls, blocks: Iterable[TokenBlock]) -> "Samples":
        """Return the rows of ``blocks``, in their order."""
        tokens: list[tuple[Tokens, Tokens]] = []
        columns: list[tuple[Integers, Integers, Integers]] = [(NOTHING, NOTHING, NOTHING)]
        for block in blocks:
            tokens.append((block.input_ids, block.labels))
            columns.append((block.lengths, block.trained_tokens, block.rows))
        lengths, trained_tokens, rows = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        sizes = np.array([len(input_ids) for input_ids, _ in tokens], dtype=np.int64)
        return cls(
            lengths=lengths,
            trained_tokens=trained_tokens,
            rows=rows,
            starts=np.cumsum(lengths) - lengths,
            blocks=tuple(tokens),
            block_starts=np.cumsum(sizes) - sizes,
        )

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Samples": ...

    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        """Return one row, or the rows of a slice."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self), dtype=np.int64)[index])
        start, length = int(self.starts[index]), int(self.lengths[index])
        number = int(np.searchsorted(self.block_starts, start, side="right")) - 1
        (input_ids, labels), first = self.blocks[number], start - int(self.block_starts[number])
        # Copies, so that who changes a row does not change the data of the next epoch.
        return Sample(
            input_ids=input_ids[first : first + length].copy(),
            labels=labels[first : first + length].copy(),
            row=int(self.rows[index]),
        )

    def select(self, indices: Integers) -> "Samples":
        """Return the rows at ``indices``, in that order; no token is copied."""
        return replace(
            self,
            lengths=self.lengths[indices],
            trained_tokens=self.trained_tokens[indices],
            rows=self.rows[indices],
            starts=self.starts[indices],
        )

    def cut(self, max_tokens: int) -> "Samples":
        """Return the rows with at most their first ``max_tokens``, in their order; no token is copied."""
        trained_tokens = self.trained_tokens.copy()
        for index in np.flatnonzero(self.lengths > max_tokens).tolist():
            labels = self[index].labels[1:max_tokens]
            trained_tokens[index] = np.count_nonzero(labels != IGNORED_LABEL)
        return replace(self, lengths=np.minimum(self.lengths, max_tokens), trained_tokens=trained_tokens)


def count_trained(labels: Tokens, lengths: Integers) -> Integers:
    """Return for each row the labels that count, ``[rows]``; the first of a row does not: nothing predicts it.

    Args:
        labels: ``[tokens]``, the rows one behind the other.
        lengths: ``[rows]``.
    """
    ends = np.cumsum(lengths)
    counts = labels != IGNORED_LABEL
    counts[(ends - lengths)[lengths > 0]] = False
    counted = np.concatenate([[0], np.cumsum(counts)])
    return counted[ends] - counted[ends - lengths]


def token_lengths(samples: Sequence[Sample]) -> Integers:
    """Return the tokens of each sample, ``[samples]``, without reading those of :class:`Samples`."""
    if isinstance(samples, Samples):
        return samples.lengths
    return np.array([len(sample.input_ids) for sample in samples], dtype=np.int64)


def gather_samples(samples: Iterable[Sample]) -> Samples:
    """Put rows into arrays; they are not checked."""
    return Samples.of_blocks(_gather_blocks(samples))


def load_samples(path: Path, vocab_size: int) -> Samples:
    """Read and check every row of a processed dataset.

    Args:
        path: a parquet file with ``input_ids`` and ``labels`` (and ``row``, else the rows are numbered from 1), a
            JSON Lines file with the first two, or a folder that holds ``train.parquet``.
        vocab_size: rows of the model's embedding; ids must be below it.

    Raises:
        MissingPathError: if there is no such file.
        DataError: if a column is missing, or a row has unequal lengths, an id out of range or no trained label.
    """
    file = path / TRAIN_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingPathError(f"{file}: there is no such file. Give the output of processing, or a JSON Lines file.")
    with file.open("rb") as opened:
        is_parquet = opened.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    blocks = _parquet_blocks(file, vocab_size) if is_parquet else _jsonl_blocks(file, vocab_size)
    samples = Samples.of_blocks(blocks)
    if not samples:
        raise DataError(f"{file}: there is no row to train on. Process a dataset that has some.")
    return samples


def _parquet_blocks(file: Path, vocab_size: int) -> Iterator[TokenBlock]:
    """Yield the rows of a parquet file, whose columns may be of any integer width."""
    with _open_parquet(file) as parquet:
        first = 1
        columns = [column for column in ("input_ids", "labels", "row") if column in parquet.schema_arrow.names]
        for batch in _read_batches(file, parquet, columns):
            block = _to_block(file, batch, first)
            _check_block(file, block, vocab_size)
            yield block
            first += len(batch)


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        # Buffered ahead, the whole compressed file would lie in memory.
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error
    names = parquet.schema_arrow.names
    for column in ("input_ids", "labels"):
        if column not in names:
            raise DataError(f"{file}: column '{column}' is missing; it has {', '.join(names)}. Process the data again.")
    return parquet


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: it cannot be read as parquet ({type(error).__name__}). Process the data again.")


def _read_batches(file: Path, parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet.iter_batches(batch_size=BLOCK_ROWS, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _to_block(file: Path, batch: pa.RecordBatch, first: int) -> TokenBlock:
    """Return the rows of ``batch``, numbered from ``first`` if they have no numbers of their own."""
    input_ids, lengths = _int32_lists(file, batch, "input_ids")
    labels, label_lengths = _int32_lists(file, batch, "labels")
    names = batch.schema.names
    rows = _int64_column(file, batch, "row") if "row" in names else np.arange(first, first + len(batch))
    unequal = np.flatnonzero(lengths != label_lengths)
    if len(unequal):
        index = unequal[0]
        raise DataError(
            f"{file}, row {rows[index]}: {lengths[index]} input_ids but {label_lengths[index]} labels; "
            "give one label for each token."
        )
    trained = count_trained(labels, lengths)
    return TokenBlock(input_ids=input_ids, labels=labels, lengths=lengths, rows=rows, trained_tokens=trained)


def _int32_lists(file: Path, batch: pa.RecordBatch, column: str) -> tuple[Tokens, Integers]:
    """Return the values of a list column, one behind the other, and how many each row has."""
    try:
        lists = batch.column(column).cast(pa.list_(pa.int32()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{file}: column '{column}' holds no lists of 32-bit whole numbers. Process the data again."
        ) from error
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise DataError(f"{file}: column '{column}' has empty cells. Process the data again.")
    # Copied out of arrow's buffers, which have room to grow: of 219 MB of tokens it held 11 MB more.
    return values.to_numpy().copy(), np.diff(lists.offsets.to_numpy().astype(np.int64))


def _int64_column(file: Path, batch: pa.RecordBatch, column: str) -> Integers:
    try:
        values = batch.column(column).cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{file}: column '{column}' holds no whole numbers. Process the data again.") from error
    if values.null_count:
        raise DataError(f"{file}: column '{column}' has empty cells. Process the data again.")
    return values.to_numpy().copy()


def _check_block(file: Path, block: TokenBlock, vocab_size: int) -> None:
    """Raise a :class:`DataError` that names the first row of ``block`` that cannot be trained on, if there is one."""
    # As unsigned numbers the negative ones are above any vocabulary.
    wrong = (block.input_ids.view(np.uint32) >= vocab_size) | (
        (block.labels.view(np.uint32) >= vocab_size) & (block.labels != IGNORED_LABEL)
    )
    ends = np.cumsum(block.lengths)
    is_bad = block.trained_tokens == 0
    is_bad[np.searchsorted(ends, np.flatnonzero(wrong), side="right")] = True
    if not is_bad.any():
        return
    index = int(is_bad.argmax())
    tokens = slice(ends[index] - block.lengths[index], ends[index])
    problem = _describe_bad_row(block.input_ids[tokens], block.labels[tokens], vocab_size)
    raise DataError(f"{file}, row {block.rows[index]}: {problem}.")


def _describe_bad_row(input_ids: Tokens, labels: Tokens, vocab_size: int) -> str:
    mend = "process the data with the tokenizer of the model to train"
    if problem := _out_of_range("input_ids", input_ids, input_ids >= 0, vocab_size):
        return f"{problem}; {mend}"
    if problem := _out_of_range("labels", labels, (labels >= 0) | (labels == IGNORED_LABEL), vocab_size):
        return f"{problem} or {IGNORED_LABEL}; {mend}"
    return f"every label behind the first is {IGNORED_LABEL}, so nothing is trained; remove the row"


def _out_of_range(column: str, values: Tokens, allowed: npt.NDArray[np.bool_], vocab_size: int) -> str | None:
    """Describe the first value that is not allowed or not below ``vocab_size``."""
    wrong = np.flatnonzero(~allowed | (values >= vocab_size))
    if not len(wrong):
        return None
    return f"{column}[{wrong[0]}] is {values[wrong[0]]}; allowed is 0 to {vocab_size - 1}"


def _jsonl_blocks(file: Path, vocab_size: int) -> Iterator[TokenBlock]:
    for block in _gather_blocks(_jsonl_samples(file)):
        _check_block(file, block, vocab_size)
        yield block


def _jsonl_samples(file: Path) -> Iterator[Sample]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = parse_row(line)
            problem = row if isinstance(row, tuple) else next(check_processed_row(row, RowFacts()), None)
            if isinstance(row, tuple) or problem is not None:
                raise DataError(f"{file}, row {number}: {describe_problem(problem)} Run 'osft validate' on it.")
            yield Sample(
                input_ids=np.array(row["input_ids"], dtype=np.int32),
                labels=np.array(row["labels"], dtype=np.int32),
                row=number,
            )


def _gather_blocks(samples: Iterable[Sample]) -> Iterator[TokenBlock]:
    remaining = iter(samples)
    while group := list(islice(remaining, BLOCK_ROWS)):
        labels = np.concatenate([sample.labels for sample in group])
        lengths = token_lengths(group)
        yield TokenBlock(
            input_ids=np.concatenate([sample.input_ids for sample in group]),
            labels=labels,
            lengths=lengths,
            rows=np.array([sample.row for sample in group], dtype=np.int64),
            trained_tokens=count_trained(labels, lengths),
        )
