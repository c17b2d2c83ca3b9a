"""Token rows as the trainer reads them: from ``train.parquet``, or from JSON Lines that the user tokenized.

Every row is checked before a step is taken: an id outside the embedding would only show as an opaque device error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from osft.data.rows import IGNORED_LABEL, RowFacts, check_processed_row, describe_problem, parse_row
from osft.errors import DataError, MissingPathError

TRAIN_NAME = "train.parquet"
HOLDOUT_NAME = "holdout.parquet"
PARQUET_MAGIC = b"PAR1"
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("row", pa.int64())])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One row to train on."""

    input_ids: npt.NDArray[np.int32]
    """``[tokens]``."""

    labels: npt.NDArray[np.int32]
    """``[tokens]``; an id where the loss counts, -100 elsewhere. Not shifted."""

    row: int
    """Line of the validated file, from 1."""


def load_samples(path: Path, vocab_size: int) -> list[Sample]:
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
    samples = list(_parquet_samples(file) if is_parquet else _jsonl_samples(file))
    for sample in samples:
        if problem := sample_problem(sample, vocab_size):
            raise DataError(f"{file}, row {sample.row}: {problem}.")
    if not samples:
        raise DataError(f"{file}: there is no row to train on. Process a dataset that has some.")
    return samples


def sample_problem(sample: Sample, vocab_size: int) -> str | None:
    """Say what keeps ``sample`` from being trained on, ``None`` if nothing does."""
    if len(sample.input_ids) != len(sample.labels):
        return f"{len(sample.input_ids)} input_ids but {len(sample.labels)} labels; give one label for each token"
    mend = "process the data with the tokenizer of the model to train"
    if problem := _out_of_range("input_ids", sample.input_ids, sample.input_ids >= 0, vocab_size):
        return f"{problem}; {mend}"
    allowed = (sample.labels >= 0) | (sample.labels == IGNORED_LABEL)
    if problem := _out_of_range("labels", sample.labels, allowed, vocab_size):
        return f"{problem} or {IGNORED_LABEL}; {mend}"
    # Nothing precedes the first token, so nothing predicts it.
    if not (sample.labels[1:] != IGNORED_LABEL).any():
        return f"every label behind the first is {IGNORED_LABEL}, so nothing is trained; remove the row"
    return None


def _out_of_range(
    column: str, values: npt.NDArray[np.int32], allowed: npt.NDArray[np.bool_], vocab_size: int
) -> str | None:
    """Describe the first value that is not allowed or not below ``vocab_size``."""
    wrong = np.flatnonzero(~allowed | (values >= vocab_size))
    if not len(wrong):
        return None
    return f"{column}[{wrong[0]}] is {values[wrong[0]]}; allowed is 0 to {vocab_size - 1}"


def _parquet_samples(file: Path) -> Iterator[Sample]:
    """Yield the rows of a parquet file, whose columns may be of any integer width."""
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file}: it cannot be read as parquet ({type(error).__name__}). Process the data again."
        ) from error
    for column in ("input_ids", "labels"):
        if column not in names:
            raise DataError(f"{file}: column '{column}' is missing; it has {', '.join(names)}. Process the data again.")
    columns = [column for column in SCHEMA.names if column in names]
    first = 1
    for batch in parquet.iter_batches(columns=columns):
        yield from _batch_samples(file, batch, first)
        first += len(batch)


def _batch_samples(file: Path, batch: pa.RecordBatch, first: int) -> Iterator[Sample]:
    input_ids, labels = (_int32_lists(file, batch, column) for column in ("input_ids", "labels"))
    has_rows = "row" in batch.schema.names
    rows = batch.column("row").to_pylist() if has_rows else range(first, first + len(batch))
    for ids, row_labels, row in zip(input_ids, labels, rows, strict=True):
        yield Sample(input_ids=ids, labels=row_labels, row=row)


def _int32_lists(file: Path, batch: pa.RecordBatch, column: str) -> list[npt.NDArray[np.int32]]:
    """Return a list column as one array a row."""
    try:
        lists = batch.column(column).cast(pa.list_(pa.int32()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{file}: column '{column}' holds no lists of 32-bit whole numbers. Process the data again."
        ) from error
    if lists.null_count or lists.flatten().null_count:
        raise DataError(f"{file}: column '{column}' has empty cells. Process the data again.")
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    # Copied, because arrow's buffers are read-only and torch cannot share those.
    values = np.array(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.int32)
    return [values[start:end] for start, end in pairwise(offsets)]


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
