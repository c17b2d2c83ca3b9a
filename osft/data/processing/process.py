"""Turn valid rows into token ids and labels, split into rows to train on and held-out rows.

Which tokens are trained is decided in :mod:`osft.data.processing.tokenizing`, which side a row falls on in
:mod:`osft.data.processing.splitting`.

The file goes through in chunks, a large one through several processes. A second pass is made only if the first left
one side empty, which happens with a handful of rows. The outcome is kept under a hash of the rows, the tokenizer and
the options, and asked for again it is only linked.
"""

import datetime
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from osft.content_cache import ContentCache, content_key
from osft.data.chunks import split_into_chunks
from osft.data.files import (
    HELD_OUT_ROWS_NAME,
    HOLDOUT_NAME,
    PROCESSING_REPORT_NAME,
    TAKEN_ROWS_NAME,
    TOO_LONG_ROWS_NAME,
    TRAIN_NAME,
    VALID_NAME,
    VALIDATION_REPORT_NAME,
    jsonl_file,
)
from osft.data.processing.encoding import ChunkEncoder, EncodedChunk, EncodingConfig, cut_rows
from osft.data.processing.report import ProcessingConfig, ProcessingReport, Tally
from osft.data.processing.splitting import BlockSide, RowSide, SplitReport, SplitWriter, holdout_threshold
from osft.data.processing.taken_rows import TakenRows
from osft.data.processing.tokenizing import EncodedBatch, load_tokenizer
from osft.data.progress import RowProgress
from osft.data.samples import SCHEMA
from osft.data.validation.conversions import output_format, recognize
from osft.data.validation.rows import parse_row
from osft.errors import DataError
from osft.parallel import map_in_order
from osft.workspace import atomic_file, read_json, sha256_of_file, write_json

logger = logging.getLogger(__name__)

# A tenth of a second of work.
CHUNK_BYTES = 1 << 18
# Starting a process takes about as long as encoding so much.
SMALL_FILE_BYTES = 4 << 20
# In the order in which they appear: with the report, all is there.
HASH_NAMES = (TAKEN_ROWS_NAME, HELD_OUT_ROWS_NAME, TOO_LONG_ROWS_NAME)
OUTCOME_NAMES = (TRAIN_NAME, HOLDOUT_NAME, *HASH_NAMES, PROCESSING_REPORT_NAME)
# Part of the key of what is kept: raised when the same rows and options give other files than before.
OUTCOME_VERSION = 2
# In an error, which is one line.
MAX_NAMED_LINES = 5


def process_dataset(
    source: Path, output: Path, config: ProcessingConfig, *, cache: ContentCache | None = None
) -> ProcessingReport:
    """Tokenize ``source``; leave ``train.parquet``, ``holdout.parquet`` and ``processing.json`` in ``output``.

    The columns are those of :data:`osft.data.samples.SCHEMA`. Beside them ``taken_rows.bin``, ``held_out_rows.bin`` and
    ``too_long_rows.bin`` have the hashes of the rows, by which later runs know them
    (:mod:`osft.data.processing.taken_rows`). Where the files of the same rows, tokenizer and options are in ``output``
    or in ``cache``, nothing is tokenized.

    Args:
        source: a JSON Lines file of valid rows, or a folder that holds ``valid.jsonl``.
        output: folder for the files; created if missing.
        config: how.
        cache: where to look for the files first, and to keep them.

    Raises:
        MissingPathError: if the source or the tokenizer is not there.
        ConfigError: if the tokenizer does not fit the data format.
        DataError: if a row is not valid or cannot be rendered, or no row is left to train on.
    """
    path = jsonl_file(source, VALID_NAME)
    _refuse_what_validation_refused(path)
    tokenizer = load_tokenizer(config.model)
    key = _outcome_key(path, config, tokenizer)
    if not _is_finished(output, key):
        # Should this be interrupted, nothing of an older outcome must be left to be taken for this one's.
        for name in reversed(OUTCOME_NAMES):
            (output / name).unlink(missing_ok=True)
        if not (cache and cache.take(key, output, OUTCOME_NAMES)):
            _write_outcome(path, output, config, tokenizer, key)
            if cache:
                cache.keep(key, [output / name for name in OUTCOME_NAMES])
    report = ProcessingReport.load(output / PROCESSING_REPORT_NAME)
    if report.config != config:
        # The same tokenizer in another folder.
        report = replace(report, config=config)
        write_json(output / PROCESSING_REPORT_NAME, asdict(report))
    _log_report(report)
    return report


def _refuse_what_validation_refused(path: Path) -> None:
    """Refuse the valid rows of a file whose others were too many.

    Raises:
        DataError: if the report of validation beside ``path`` says so.
    """
    report_file = path.with_name(VALIDATION_REPORT_NAME)
    if path.name == VALID_NAME and report_file.is_file() and not read_json(report_file).get("accepted", True):
        raise DataError(
            f"{path}: validation refused the file that these rows are from. Mend it, or validate it with "
            "on_invalid=drop and a max_invalid_fraction."
        )


def _outcome_key(path: Path, config: ProcessingConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that determines the files."""
    tokenizer_parts = (
        tokenizer.backend_tokenizer.to_str(),
        orjson.dumps(tokenizer.chat_template, option=orjson.OPT_SORT_KEYS).decode(),
        orjson.dumps({name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}).decode(),
    )
    options = {**asdict(config), "model": ""}
    # Llama 3's template writes the day into each conversation.
    today = datetime.date.today().isoformat() if "strftime_now" in tokenizer_parts[1] else ""
    return content_key(
        {
            "rows": sha256_of_file(path),
            "tokenizer": hashlib.sha256("\0".join(tokenizer_parts).encode()).hexdigest(),
            "options": options,
            "day": today,
            "versions": [OUTCOME_VERSION, version("tokenizers"), version("transformers")],
        }
    )


def _is_finished(output: Path, key: str) -> bool:
    """Return whether ``output`` holds the files of ``key``; the report is written last."""
    if not (output / PROCESSING_REPORT_NAME).is_file():
        return False
    report = read_json(output / PROCESSING_REPORT_NAME)
    files_are_there = all((output / name).is_file() for name in OUTCOME_NAMES)
    return isinstance(report, dict) and report.get("key") == key and files_are_there


def _write_outcome(
    path: Path, output: Path, config: ProcessingConfig, tokenizer: PreTrainedTokenizerBase, key: str
) -> None:
    encoder = ChunkEncoder(path, _encoding_config(path, config), tokenizer)
    threshold = holdout_threshold(config.holdout_fraction)
    tally, sides = _write_splits(path, output, config, encoder, threshold)
    if tally.keys:
        needed = holdout_threshold(config.holdout_fraction, min(tally.keys), max(tally.keys))
        if needed != threshold:
            tally, sides = _write_splits(path, output, config, encoder, needed)
    train, holdout = sides
    if train.rows == 0:
        for name in OUTCOME_NAMES:
            (output / name).unlink(missing_ok=True)
        raise _nothing_left(path, tally, config.max_seq_len)
    report = tally.report(config, encoder.data_format, (train, holdout), key)
    write_json(output / PROCESSING_REPORT_NAME, asdict(report))


def _nothing_left(path: Path, tally: Tally, max_seq_len: int) -> DataError:
    """Return the error of a file without a row to train on, with the lines of those that are too long."""
    counts = f"{tally.rows_in} rows, {tally.dropped} of them longer than {max_seq_len} tokens"
    sentence = f"{path}: no row is left to train on ({counts})."
    if not tally.dropped:
        return DataError(f"{sentence} Give more rows.")
    named = ", ".join(map(str, tally.too_long_lines[:MAX_NAMED_LINES]))
    more = ", …" if tally.dropped > MAX_NAMED_LINES else ""
    return DataError(
        f"{sentence} Too long: line {named}{more}; the longest has {max(tally.lengths)} tokens. Raise max_seq_len, "
        "choose on_too_long truncate, or give more rows."
    )


def _encoding_config(path: Path, config: ProcessingConfig) -> EncodingConfig:
    """Return what the workers need, the format of the rows found out.

    Raises:
        ConfigError: if the rows are documents and no block size fits.
        DataError: if the first row is of no known shape.
    """
    shape = config.data_format if config.data_format != "auto" else _first_shape(path, config.document_column)
    data_format = output_format(shape)
    if data_format == "documents":
        config.check_block_size()
    return EncodingConfig(
        data_format=data_format,
        document_column=config.document_column,
        unmask_messages=config.unmask_messages,
        max_seq_len=config.max_seq_len,
        on_too_long=config.on_too_long,
        seed=config.seed,
    )


def _first_shape(path: Path, document_column: str) -> str:
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"{}")
    row = parse_row(first)
    shape = recognize(row, document_column) if isinstance(row, dict) else None
    if shape is None:
        raise DataError(f"{path}: the first row has no known shape. Validate the file first, or give its data_format.")
    return shape


def _write_splits(
    path: Path, output: Path, config: ProcessingConfig, encoder: ChunkEncoder, threshold: int
) -> tuple[Tally, tuple[SplitReport, SplitReport]]:
    """Write both parquet files and the hashes in one pass; rows with a key below ``threshold`` are held out."""
    tally = Tally()
    output.mkdir(parents=True, exist_ok=True)
    size_bytes = path.stat().st_size
    with ExitStack() as stack:
        progress = stack.enter_context(RowProgress(logger, "tokenized", total_bytes=size_bytes))
        taken = stack.enter_context(TakenRows(output, size_bytes))
        train, holdout = (_open_side(stack, output / name, config, encoder) for name in (TRAIN_NAME, HOLDOUT_NAME))
        for chunk in _encode_chunks(path, encoder):
            tally.add(chunk)
            taken.add(chunk, threshold)
            progress.advance(chunk.rows_in, chunk.size_bytes)
            for batch in chunk.kept:
                held_out = batch.keys < threshold
                train.add(_rows_where(batch, ~held_out))
                holdout.add(_rows_where(batch, held_out))
        taken.write()
        sides = train.close(), holdout.close()
    if tally.rows_in == 0:
        raise DataError(f"{path}: the file holds no rows. Give a JSON Lines file with one object a line.")
    return tally, sides


def _encode_chunks(path: Path, encoder: ChunkEncoder) -> Iterator[EncodedChunk]:
    """Yield the chunks of ``path`` as tokens, in order."""
    is_small = path.stat().st_size < SMALL_FILE_BYTES
    # By itself, the tokenizer has its own threads.
    return map_in_order(encoder, split_into_chunks(path, CHUNK_BYTES), processes=1 if is_small else None)


def _rows_where(batch: EncodedBatch, mask: np.ndarray) -> EncodedBatch:
    return batch if mask.all() else cut_rows(batch, np.where(mask, batch.lengths, 0))


def _open_side(stack: ExitStack, path: Path, config: ProcessingConfig, encoder: ChunkEncoder) -> RowSide | BlockSide:
    """Open one side's file, which ``stack`` closes, and which appears when it is whole."""
    file = stack.enter_context(atomic_file(path))
    writer = SplitWriter(stack.enter_context(pq.ParquetWriter(file, SCHEMA)))
    if encoder.data_format == "documents" and config.block_size is not None:
        return BlockSide(writer, config.block_size)
    return RowSide(writer)


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
        logger.warning(
            "%d rows spell out special tokens in their messages; they are kept as text", report.rows_with_control_text
        )
