"""Turn validated rows into token ids and labels, split into training and held-out rows.

The chat template is the one of the model's own tokenizer. Loss counts on assistant turns, the token that closes a
turn included; ``unmask_messages``, or a row's own ``unmask``, adds the contents of user messages; a ``pretraining``
message is trained whole. Where the template puts what is found in :mod:`osft.data.rendering`, the tokens in
:mod:`osft.data.tokenizing`, the split in :mod:`osft.data.splitting`.

Rows stream through in batches. A second pass is made only if the first left one side empty, which happens with a
handful of rows.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import orjson
import pyarrow.parquet as pq

from osft.data.messages import REPORT_NAME, VALID_NAME, jsonl_file
from osft.data.progress import RowProgress
from osft.data.rows import IGNORED_LABEL, RowFacts, describe_problem, parse_row, row_checker
from osft.data.samples import HOLDOUT_NAME, SCHEMA, TRAIN_NAME, Sample, load_samples
from osft.data.splitting import (
    BlockSide,
    LengthReport,
    RowSide,
    SplitReport,
    SplitWriter,
    describe_lengths,
    holdout_threshold,
    split_key,
)
from osft.data.tokenizing import (
    ConversationEncoder,
    DocumentEncoder,
    EncodedRow,
    ParsedRow,
    PassThroughEncoder,
    RowEncoder,
    load_tokenizer,
)
from osft.errors import ConfigError, DataError
from osft.workspace import atomic_file, write_json

__all__ = ["ProcessingConfig", "ProcessingReport", "Sample", "load_samples", "process_dataset"]

logger = logging.getLogger(__name__)

OnTooLong = Literal["drop", "truncate", "fail"]
# The tokenizer spreads a batch over its threads; larger ones gain nothing measurable.
BATCH_ROWS = 1_000
MAX_REPORTED_LINES = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessingConfig:
    """How rows become tokens.

    Raises:
        ConfigError: if a value is not allowed; the message names the parameter, the value and what is allowed.
    """

    model: str
    """Folder or Hugging Face id whose tokenizer is used."""

    max_seq_len: int
    """Longest row in tokens."""

    data_format: str = "messages"
    """``messages``, ``processed`` (``input_ids`` and ``labels`` pass through, checked) or ``documents``."""

    unmask_messages: bool = False
    """Train everything but system messages, in every row."""

    holdout_fraction: float = 0.1
    """Expected share of held-out rows, 0 up to but not including 1; 0 writes an empty ``holdout.parquet``."""

    on_too_long: str = "drop"
    """What happens to a row beyond :attr:`max_seq_len`: ``drop``, ``truncate`` or ``fail``."""

    seed: int = 42
    """Seed of the split."""

    block_size: int | None = None
    """Tokens of a block; required with ``documents``."""

    document_column: str = "document"
    """With ``documents``, the column that holds the text."""

    def __post_init__(self) -> None:
        row_checker(self.data_format, self.document_column)
        if not self.model:
            raise ConfigError("model is empty; give a folder or a Hugging Face id.")
        if self.max_seq_len < 1:
            raise ConfigError(f"max_seq_len is {self.max_seq_len}; allowed is a whole number from 1.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ConfigError(f"holdout_fraction is {self.holdout_fraction}; allowed is 0 up to, not including, 1.")
        if self.on_too_long not in get_args(OnTooLong):
            raise ConfigError(f"on_too_long is '{self.on_too_long}'; allowed are {', '.join(get_args(OnTooLong))}.")
        if self.data_format == "documents" and self.block_size is None:
            raise ConfigError("block_size is missing; data_format documents needs the tokens of a block.")
        if self.block_size is not None and not 2 <= self.block_size <= self.max_seq_len:
            raise ConfigError(f"block_size is {self.block_size}; allowed is 2 to max_seq_len, {self.max_seq_len}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessingReport:
    """What processing did; saved as ``report.json``."""

    config: ProcessingConfig
    rows_in: int
    """Rows of the source; with documents, documents."""

    rows_train: int
    """Rows of ``train.parquet``; with documents, blocks."""

    rows_holdout: int
    rows_dropped_too_long: int
    """Without documents, ``rows_in`` is the sum of this, :attr:`rows_train` and :attr:`rows_holdout`."""

    rows_truncated: int
    too_long_lines: tuple[int, ...]
    """The first lines that were dropped or truncated, from 1."""

    train: SplitReport
    holdout: SplitReport
    lengths: LengthReport
    """In tokens, before anything is dropped or cut."""

    messages_not_rendered: int
    """System and user messages that the chat template leaves out."""

    reasoning_not_rendered: int
    """Assistant turns whose reasoning the chat template leaves out."""

    rows_with_control_text: int
    """Rows in which a message spells out a special token of the tokenizer, and so contains that token."""


@dataclass(slots=True)
class _Tally:
    """The counts of one pass."""

    rows_in: int = 0
    dropped: int = 0
    truncated: int = 0
    too_long_lines: list[int] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    messages_not_rendered: int = 0
    reasoning_not_rendered: int = 0
    rows_with_control_text: int = 0
    keys: set[int] = field(default_factory=set)
    """The smallest and the largest key of the rows that were kept."""

    def add(self, row: EncodedRow) -> None:
        self.rows_in += 1
        self.lengths[len(row.input_ids)] += 1
        self.messages_not_rendered += row.messages_not_rendered
        self.reasoning_not_rendered += row.reasoning_not_rendered
        self.rows_with_control_text += row.has_control_text

    def add_too_long(self, row: EncodedRow, *, truncated: bool) -> None:
        self.truncated += truncated
        self.dropped += not truncated
        if len(self.too_long_lines) < MAX_REPORTED_LINES:
            self.too_long_lines.append(row.line)


def process_dataset(source: Path, output: Path, config: ProcessingConfig) -> ProcessingReport:
    """Tokenize ``source``; leave ``train.parquet``, ``holdout.parquet`` and ``report.json`` in ``output``.

    The columns are ``input_ids`` and ``labels`` (lists of int32) and ``row`` (int64, the line in the source, from 1).

    Args:
        source: a JSON Lines file of valid rows, or a folder that holds ``valid.jsonl``.
        output: folder for the three files; created if missing.
        config: how.

    Raises:
        MissingPathError: if the source or the tokenizer is not there.
        ConfigError: if the tokenizer does not fit the data format.
        DataError: if a row is not valid or cannot be rendered, or no row is left to train on.
    """
    path = jsonl_file(source, VALID_NAME)
    encoder = _make_encoder(config)
    threshold = holdout_threshold(config.holdout_fraction)
    report, keys = _write_splits(path, output, config, encoder, threshold)
    if keys:
        needed = holdout_threshold(config.holdout_fraction, min(keys), max(keys))
        if needed != threshold:
            report, _ = _write_splits(path, output, config, encoder, needed)
    if report.rows_train == 0:
        (output / TRAIN_NAME).unlink()
        (output / HOLDOUT_NAME).unlink()
        raise DataError(
            f"{path}: no row is left to train on ({report.rows_in} rows, {report.rows_dropped_too_long} of them longer "
            f"than {config.max_seq_len} tokens). Raise max_seq_len or give more rows."
        )
    write_json(output / REPORT_NAME, asdict(report))
    _log_report(report)
    return report


def _make_encoder(config: ProcessingConfig) -> RowEncoder:
    tokenizer = load_tokenizer(config.model)
    if config.data_format == "processed":
        return PassThroughEncoder(len(tokenizer))
    if config.data_format == "documents":
        return DocumentEncoder(tokenizer, config.document_column)
    return ConversationEncoder(tokenizer, unmask_messages=config.unmask_messages)


def _write_splits(
    path: Path, output: Path, config: ProcessingConfig, encoder: RowEncoder, threshold: int
) -> tuple[ProcessingReport, set[int]]:
    """Write both parquet files in one pass; rows with a key below ``threshold`` are held out.

    Returns:
        The report, and the smallest and the largest key of the rows that were kept (none if none was).
    """
    tally = _Tally()
    with ExitStack() as stack:
        train, holdout = (_open_side(stack, output / name, config) for name in (TRAIN_NAME, HOLDOUT_NAME))
        for row in _encode_rows(path, config, encoder):
            tally.add(row)
            kept = row if config.data_format == "documents" else _fit(path, row, config, tally)
            if kept is not None:
                tally.keys = {min(tally.keys | {kept.key}), max(tally.keys | {kept.key})}
                (holdout if kept.key < threshold else train).add(kept)
        sides = train.close(), holdout.close()
    if tally.rows_in == 0:
        raise DataError(f"{path}: the file holds no rows. Give a JSON Lines file with one object a line.")
    return _make_report(config, tally, *sides), tally.keys


def _open_side(stack: ExitStack, path: Path, config: ProcessingConfig) -> RowSide | BlockSide:
    """Open one side's file, which ``stack`` closes, and which appears when it is whole."""
    file = stack.enter_context(atomic_file(path))
    writer = SplitWriter(stack.enter_context(pq.ParquetWriter(file, SCHEMA)))
    if config.data_format == "documents" and config.block_size is not None:
        return BlockSide(writer, config.block_size)
    return RowSide(writer)


def _encode_rows(path: Path, config: ProcessingConfig, encoder: RowEncoder) -> Iterator[EncodedRow]:
    """Yield the rows of ``path`` as tokens, in order."""
    progress = RowProgress(logger, "tokenized")
    for batch in _batches(_parse_rows(path, config, progress)):
        try:
            yield from encoder.encode(batch)
        except DataError as error:
            raise DataError(f"{path}, {error}") from error


def _batches(rows: Iterator[ParsedRow]) -> Iterator[list[ParsedRow]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _parse_rows(path: Path, config: ProcessingConfig, progress: RowProgress) -> Iterator[ParsedRow]:
    """Yield every row of ``path``, which must be valid."""
    check = row_checker(config.data_format, config.document_column, unmask_messages=config.unmask_messages)
    trained_column = {"messages": "messages", "processed": "input_ids"}.get(config.data_format, config.document_column)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = parse_row(line)
            problem = row if isinstance(row, tuple) else next(check(row, RowFacts()), None)
            if isinstance(row, tuple) or problem is not None:
                raise DataError(f"{path}, line {number}: {describe_problem(problem)} Validate the file first.")
            # The whole of what is trained, and nothing else: rows that differ in an id are duplicates still.
            content = orjson.dumps(row[trained_column], option=orjson.OPT_SORT_KEYS)
            yield ParsedRow(line=number, fields=row, key=split_key(content, config.seed))
            progress.advance(1, len(line))


def _fit(path: Path, row: EncodedRow, config: ProcessingConfig, tally: _Tally) -> EncodedRow | None:
    """Return ``row`` if it is short enough, what is left of it after truncation, or ``None``.

    Raises:
        DataError: if it is too long and ``on_too_long`` is ``fail``.
    """
    length = len(row.input_ids)
    if length <= config.max_seq_len:
        return row
    if config.on_too_long == "fail":
        raise DataError(
            f"{path}, line {row.line}: the row has {length} tokens, more than max_seq_len {config.max_seq_len}. "
            "Raise max_seq_len, or choose on_too_long drop or truncate."
        )
    labels = row.labels[: config.max_seq_len]
    # What is left may be the question only.
    truncated = config.on_too_long == "truncate" and bool((labels[1:] != IGNORED_LABEL).any())
    tally.add_too_long(row, truncated=truncated)
    if not truncated:
        return None
    return EncodedRow(line=row.line, key=row.key, input_ids=row.input_ids[: config.max_seq_len], labels=labels)


def _make_report(config: ProcessingConfig, tally: _Tally, train: SplitReport, holdout: SplitReport) -> ProcessingReport:
    return ProcessingReport(
        config=config,
        rows_in=tally.rows_in,
        rows_train=train.rows,
        rows_holdout=holdout.rows,
        rows_dropped_too_long=tally.dropped,
        rows_truncated=tally.truncated,
        too_long_lines=tuple(tally.too_long_lines),
        train=train,
        holdout=holdout,
        lengths=describe_lengths(tally.lengths),
        messages_not_rendered=tally.messages_not_rendered,
        reasoning_not_rendered=tally.reasoning_not_rendered,
        rows_with_control_text=tally.rows_with_control_text,
    )


def _log_report(report: ProcessingReport) -> None:
    logger.info(
        "%d rows in, %d to train on (%d tokens, %d trained), %d held out, %d too long and dropped, %d truncated",
        report.rows_in,
        report.rows_train,
        report.train.tokens,
        report.train.trained_tokens,
        report.rows_holdout,
        report.rows_dropped_too_long,
        report.rows_truncated,
    )
    if report.messages_not_rendered or report.reasoning_not_rendered:
        logger.warning(
            "the chat template leaves out %d messages and the reasoning of %d turns",
            report.messages_not_rendered,
            report.reasoning_not_rendered,
        )
    if report.rows_with_control_text:
        logger.warning("%d rows spell out special tokens in their messages", report.rows_with_control_text)
