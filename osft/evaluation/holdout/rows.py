"""The held-out rows as the processing step left them: token ids, and the turns in them that are trained.

A row is one conversation, tokenized by :mod:`osft.data.processing.process`: ``input_ids``, ``labels`` (-100 where a
token is not trained) and ``row``, its number in the source. A trained turn is a run of labels other than -100.

Everything is found in whole columns at once, because a holdout may have a hundred thousand rows.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from osft.data.files import HOLDOUT_NAME
from osft.data.validation.rows import IGNORED_LABEL
from osft.errors import DataError, MissingPathError

COLUMNS = ("input_ids", "labels", "row")
TOKEN_LIST = pa.list_(pa.int32())
BATCH_ROWS = 512
"""Rows read at a time: labels are let go as soon as the turns in them are known."""

Tokens = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
Turns = tuple[tuple[int, int], ...]


# Rows are not compared: arrays have no single answer to ==.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HoldoutRow:
    """One conversation of the held-out data."""

    row: int
    """Line of the row in the source data, from 1."""

    input_ids: Tokens
    """``[tokens]``, int32; a view of the file's column, since Python's own integers take nine times the memory."""

    turns: Turns
    """Trained turns, as half-open ranges of ``input_ids``; none begins at 0, where nothing comes before."""

    is_plain_text: bool
    """Whether the row is trained from its first token on."""

    @property
    def sha256(self) -> str:
        """Hash of all but the row's number, as hexadecimal text."""
        digest = hashlib.sha256(f"{self.turns} {self.is_plain_text}\0".encode())
        digest.update(np.asarray(self.input_ids, dtype="<i4").tobytes())
        return digest.hexdigest()


def read_holdout(path: Path, *, vocabulary_size: int) -> tuple[HoldoutRow, ...]:
    """Read every row of the held-out data.

    Args:
        path: ``holdout.parquet`` or the folder that holds it.
        vocabulary_size: ids must be below it.

    Raises:
        MissingPathError: if there is no such file.
        DataError: if it has no row, lacks a column, or a row's ids and labels do not fit.
    """
    file = path / HOLDOUT_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingPathError(f"{file}: the held-out rows are not there. Run the processing step, or give no holdout.")
    try:
        with pq.ParquetFile(file) as parquet:
            batches = parquet.iter_batches(BATCH_ROWS, columns=list(COLUMNS))
            rows = [row for batch in batches for row in _rows(batch, file=file, vocabulary_size=vocabulary_size)]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(f"{file}: no parquet file with columns {', '.join(COLUMNS)} ({error}).") from error
    if not rows:
        raise DataError(f"{file}: there are no held-out rows. Raise the held-out fraction, or give no holdout.")
    return tuple(rows)


def trained_turns(labels: Tokens, lengths: Integers) -> list[Turns]:
    """Return each row's runs of labels other than -100 as half-open ranges, counted from the row's first token.

    A run at the very start begins at 1: nothing comes before the first token, so it is not predicted (the
    training loss skips it as well). A run of that token alone is no turn.

    Args:
        labels: ``[tokens]``, the rows one behind the other.
        lengths: ``[rows]``.
    """
    row_ends = np.cumsum(lengths)
    row_starts = row_ends - lengths
    is_trained = labels != IGNORED_LABEL
    # This also parts the runs of neighbouring rows.
    is_trained[row_starts[lengths > 0]] = False
    runs = np.flatnonzero(np.diff(is_trained, prepend=False, append=False)).reshape(-1, 2)
    run_rows = np.searchsorted(row_ends, runs[:, 0], side="right")
    ranges = [(start, end) for start, end in (runs - row_starts[run_rows, None]).tolist()]
    bounds = np.searchsorted(run_rows, np.arange(len(lengths) + 1))
    return [tuple(ranges[first:last]) for first, last in pairwise(bounds.tolist())]


def _rows(batch: pa.RecordBatch, *, file: Path, vocabulary_size: int) -> Iterator[HoldoutRow]:
    """Check and take apart some rows of the file."""
    lines = batch["row"].to_pylist()
    ids, lengths = _flatten(batch["input_ids"])
    labels, label_lengths = _flatten(batch["labels"])
    for index in np.flatnonzero(lengths != label_lengths).tolist():
        raise DataError(
            f"{file}, row {lines[index]}: {lengths[index]} input_ids and {label_lengths[index]} labels. "
            "Process the data again."
        )
    ends = np.cumsum(lengths)
    for place in np.flatnonzero((ids < 0) | (ids >= vocabulary_size)).tolist():
        raise DataError(
            f"{file}, row {lines[np.searchsorted(ends, place, side='right')]}: token id {ids[place]} is not below the "
            f"vocabulary size {vocabulary_size}. Process the data with the tokenizer of the base model."
        )
    starts = (ends - lengths).tolist()
    for line, start, end, turns in zip(lines, starts, ends.tolist(), trained_turns(labels, lengths), strict=True):
        if not turns:
            raise DataError(
                f"{file}, row {line}: no trained token (a label other than {IGNORED_LABEL}). Process the data again."
            )
        is_plain_text = bool(labels[start] != IGNORED_LABEL)
        yield HoldoutRow(row=line, input_ids=ids[start:end], turns=turns, is_plain_text=is_plain_text)


def _flatten(column: pa.Array) -> tuple[Tokens, Integers]:
    """Return a column of token lists as ``[tokens]`` and lengths ``[rows]``; no list is a list of none.

    Raises:
        pa.ArrowException: if it holds anything but whole numbers of 32 bits.
    """
    lists = column.cast(TOKEN_LIST)
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(), lengths
