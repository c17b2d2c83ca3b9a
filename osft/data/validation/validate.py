"""Check every row of a JSON Lines file and part the valid rows from the invalid ones.

The messages schema is the one of the OSFT guide: ``role`` is system, user, assistant or pretraining, ``content``
is text, an assistant turn may carry ``reasoning_content``, and a row may carry the boolean ``unmask``, which
widens the loss of that row from assistant turns to everything but system messages. ``unmask`` belongs to the row,
as in instructlab-training, the format's origin; on a message it is a key like any other unknown one.

Valid rows that are not new (:mod:`osft.data.increments`) are counted and left out.

One pass, never a sample, several processes for a large file: each takes a chunk of whole lines
(:mod:`osft.data.validation.chunk_check`), and here the results are put together in the order of the file. Memory is
bounded by the chunks, the longest line that is read and the findings kept for the report. Blank lines are no rows; they
are counted. Keys outside the schema are allowed (ids, sources) and counted, since no later step reads them.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Literal, get_args

from osft.data.chunks import split_into_chunks
from osft.data.files import (
    QUARANTINE_NAME,
    ROWS_NAME,
    SEEN_ROWS_NAME,
    VALID_NAME,
    VALIDATION_PAGE_NAME,
    VALIDATION_REPORT_NAME,
    jsonl_file,
)
from osft.data.increments.increment import Increment
from osft.data.progress import RowProgress
from osft.data.validation.chunk_check import (
    BYTES_PER_MIB,
    FILE_CHANGED,
    ChunkResult,
    ChunkSettings,
    check_chunk,
    first_shape,
)
from osft.data.validation.conversions import output_format
from osft.data.validation.duplicates import RowHashes
from osft.data.validation.findings import Finding, Origins
from osft.data.validation.report import (
    MAX_REPORTED_FINDINGS,
    MAX_REPORTED_WARNINGS,
    Acceptance,
    Tally,
    ValidationReport,
)
from osft.data.validation.row_examiner import AUTO, CONVERTED_FORMATS, RowRules
from osft.errors import ConfigError, DataError
from osft.parallel import count_processes, map_in_order
from osft.workspace import atomic_file, write_json

logger = logging.getLogger(__name__)

OnInvalid = Literal["fail", "drop"]
ALL_ROWS = Increment()
DATA_FORMATS = (AUTO, "messages", *CONVERTED_FORMATS, "documents", "processed")
ROWS_NAMED_IN_ERROR = 3
FOREIGN_FILES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARRO": "arrow",
}
# Some 5,000 rows, 50 ms of work: far above what sending the result costs, far below what memory bears.
CHUNK_BYTES = 4 * BYTES_PER_MIB
# A book has one or two, and a row of a million token ids with their labels 14. Parsed, a hostile line takes up to 30
# times its bytes.
MAX_LINE_BYTES = 16 * BYTES_PER_MIB
# A process takes a second to start, in which one alone checks some 100 MiB.
PARALLEL_BYTES = 64 * BYTES_PER_MIB


def validate_dataset(
    source: Path,
    output: Path,
    *,
    data_format: str = "messages",
    on_invalid: str = "fail",
    max_invalid_fraction: float = 0.0,
    document_column: str = "document",
    unmask_messages: bool = False,
    increment: Increment = ALL_ROWS,
    on_report: Callable[[ValidationReport], None] | None = None,
) -> ValidationReport:
    """Check every row of ``source``; leave ``valid.jsonl``, ``quarantine.jsonl`` and ``validation.json`` in ``output``.

    Beside them ``seen_rows.bin`` has the hashes of the valid rows, by which later runs know them.

    Valid rows are copied byte for byte, unless they have to be converted. An invalid one becomes an object in
    ``quarantine.jsonl`` with ``file``, ``line``, ``offset``, ``size_bytes``, ``findings`` and ``raw`` (its text) or,
    if it is not UTF-8, ``raw_base64``; of a line longer than :data:`MAX_LINE_BYTES` the text stays in the source.
    The files are whole also when the check fails. Rows that equal an earlier one stay; they are warned of.

    Args:
        source: a JSON Lines file, or a folder that holds ``rows.jsonl``.
        output: folder for the files; created if missing.
        data_format: ``messages``, ``processed`` (``input_ids`` and ``labels``) or ``documents``; ``sharegpt``,
            ``alpaca`` or ``prompt_completion``, which are converted to messages; or ``auto``, where each row is taken
            for what its keys say, and rows that do not end in the same format as the first one are invalid.
        on_invalid: ``fail`` allows no invalid row, ``drop`` goes on without them.
        max_invalid_fraction: with ``drop``, the largest share of invalid rows, 0 to 1, that is still accepted.
        document_column: with ``documents``, the column that holds the text.
        unmask_messages: everything but system messages is to be trained, so a row needs no assistant turn.
        increment: which of the valid rows are taken. If none of them is, that is no error: the report says so.
        on_report: called with the report before rows that must not be used are refused, to show it in either case.

    Raises:
        ConfigError: if a parameter has a value that is not allowed.
        MissingPathError: if there is no such file, or none of an earlier run's hashes.
        DataError: if too many rows are invalid, none is valid, or there is no row at all; and, without files, if the
            source changes while it is read, or a file of hashes is damaged.
    """
    _check_parameters(data_format, on_invalid, max_invalid_fraction)
    path = jsonl_file(source, ROWS_NAME)
    _refuse_other_files(path)
    _refuse_overwriting(output, path, *increment.seen_rows)
    shape = first_shape(path, MAX_LINE_BYTES, document_column) if data_format == AUTO else data_format
    rules = RowRules(
        data_format=data_format,
        output_format=output_format(shape or "messages"),
        document_column=document_column,
        unmask_messages=unmask_messages,
        since_seconds=increment.since.timestamp() if increment.since else None,
        time_column=increment.time_column if increment.since else "",
    )
    settings = _chunk_settings(path, rules, increment)
    # Should this be interrupted, an older report must not stand beside newer rows.
    for name in (VALIDATION_REPORT_NAME, VALIDATION_PAGE_NAME):
        (output / name).unlink(missing_ok=True)
    tally = _partition_rows(settings, output)
    acceptance = Acceptance(on_invalid=on_invalid, max_invalid_fraction=max_invalid_fraction)
    refusal = _refuse(tally, path, output / QUARANTINE_NAME, acceptance)
    report = tally.report(settings, acceptance, accepted=refusal is None)
    write_json(output / VALIDATION_REPORT_NAME, report)
    if on_report is not None:
        on_report(report)
    if data_format == AUTO:
        logger.info("data_format auto: found %s", _describe_shapes(tally))
    if refusal is not None:
        raise DataError(refusal)
    _log_report(report)
    return report


def _refuse_other_files(path: Path) -> None:
    """Refuse a file that is known by its first bytes not to be lines of JSON.

    Raises:
        DataError: naming what it is.
    """
    with path.open("rb") as file:
        start = file.read(4)
    kind = next((name for magic, name in FOREIGN_FILES.items() if start.startswith(magic)), None)
    if kind is not None:
        raise DataError(f"{path}: this is a {kind} file, not JSON Lines. Run 'osft download' on it first.")


def _refuse_overwriting(output: Path, *files: Path) -> None:
    """Refuse an output whose files would replace what is read.

    Raises:
        ConfigError: naming it.
    """
    names = (VALID_NAME, QUARANTINE_NAME, VALIDATION_REPORT_NAME, SEEN_ROWS_NAME)
    written = {(output / name).resolve() for name in names}
    for file in files:
        if file.resolve() in written:
            raise ConfigError(f"output '{output}' would overwrite the source {file}. Choose another folder.")


def _check_parameters(data_format: str, on_invalid: str, max_invalid_fraction: float) -> None:
    if data_format not in DATA_FORMATS:
        raise ConfigError(f"data_format is '{data_format}'; allowed are {', '.join(DATA_FORMATS)}.")
    if on_invalid not in get_args(OnInvalid):
        raise ConfigError(f"on_invalid is '{on_invalid}'; allowed are {', '.join(get_args(OnInvalid))}.")
    if not 0.0 <= max_invalid_fraction <= 1.0:
        raise ConfigError(f"max_invalid_fraction is {max_invalid_fraction}; allowed is a number from 0 to 1.")


def _chunk_settings(path: Path, rules: RowRules, increment: Increment) -> ChunkSettings:
    """Return what the processes need."""
    return ChunkSettings(
        path=path,
        rules=rules,
        origins=Origins.beside(path) if path.name == ROWS_NAME else Origins(),
        increment=increment,
        chunk_bytes=CHUNK_BYTES,
        max_line_bytes=MAX_LINE_BYTES,
        max_findings=MAX_REPORTED_FINDINGS,
    )


def _partition_rows(settings: ChunkSettings, output: Path) -> Tally:
    """Check the file once; every line that is not blank ends in one of the two files, or is counted as left out."""
    path = settings.path
    output.mkdir(parents=True, exist_ok=True)
    size_bytes = path.stat().st_size
    processes = count_processes() if size_bytes >= PARALLEL_BYTES else 1
    tally = Tally()
    with (
        path.open("rb") as rows,
        atomic_file(output / VALID_NAME) as valid,
        atomic_file(output / QUARANTINE_NAME) as quarantine,
        RowHashes(output, size_bytes) as hashes,
        RowProgress(logger, "validated", total_bytes=size_bytes) as progress,
    ):
        chunks = split_into_chunks(path, CHUNK_BYTES)
        for result in map_in_order(partial(check_chunk, settings=settings), chunks, processes=processes):
            tally.add(result)
            tally.rows_valid += _write_valid(result, rows, valid)
            tally.rows_quarantined += _write(quarantine, result.quarantine)
            hashes.add(result.rows)
            progress.advance(result.rows_in, result.size_bytes)
        left_out = tally.rows_too_old + tally.rows_seen_left_out
        if tally.rows_in - left_out != tally.rows_valid + tally.rows_quarantined:
            written = f"{tally.rows_valid} + {tally.rows_quarantined} were written"
            raise DataError(f"{path}: {tally.rows_in - left_out} rows were read and {written}: {FILE_CHANGED}")
        tally.add_duplicates(hashes.find(MAX_REPORTED_WARNINGS, output / SEEN_ROWS_NAME), settings)
    return tally


def _write_valid(result: ChunkResult, rows: IO[bytes], valid: IO[bytes]) -> int:
    """Write the valid rows of a chunk, from the file ``rows`` those that stay as they are; return how many."""
    written = _write(valid, result.converted)
    for start, size in result.ranges:
        rows.seek(start)
        written += _write(valid, rows.read(size))
    return written


def _write(file: IO[bytes], lines: bytes) -> int:
    """Write ``lines``, the last with a newline too; return how many they are, counted as they are written."""
    if lines and not lines.endswith(b"\n"):
        lines += b"\n"
    file.write(lines)
    return lines.count(b"\n")


def _refuse(tally: Tally, path: Path, quarantine: Path, acceptance: Acceptance) -> str | None:
    """Return why the rows that are left must not be used, if so."""
    if tally.rows_in == 0:
        return f"{path}: the file holds no rows. Give a JSON Lines file with one object a line."
    if tally.rows_quarantined == 0:
        return None
    examined = tally.rows_in - tally.rows_too_old
    counted = f"{path}: {tally.rows_quarantined} of {examined} rows are invalid ({_first_rows(tally)})."
    where = f"All of them are in {quarantine}"
    if acceptance.on_invalid == "fail":
        return f"{counted} {where}; mend the source or choose on_invalid=drop with max_invalid_fraction."
    fraction = tally.rows_quarantined / examined
    if fraction > acceptance.max_invalid_fraction:
        limit = f"that is {fraction:.4f}, more than max_invalid_fraction {acceptance.max_invalid_fraction}"
        return f"{counted} {where}; {limit}. Mend the source or raise the limit."
    if tally.rows_quarantined == examined:
        return f"{counted} {where}; no valid row is left. Mend the source."
    logger.warning("%s %s; they are dropped", counted, where)
    return None


def _first_rows(tally: Tally) -> str:
    """Name the first few invalid rows with the first finding of each."""
    first: dict[int, Finding] = {}
    for finding in tally.findings:
        first.setdefault(finding.line, finding)
        if len(first) == ROWS_NAMED_IN_ERROR:
            break
    named = [f"line {line}, {item.path or 'row'}: {item.message} [{item.code}]" for line, item in first.items()]
    more = tally.rows_quarantined - len(first)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _log_report(report: ValidationReport) -> None:
    """Log how many rows there are of each kind, and if none is new, why."""
    logger.info(
        "%s: %d rows, %d valid, %d invalid", report.source, report.rows_in, report.rows_valid, report.rows_quarantined
    )
    if report.rows_too_old:
        logger.info("%d rows from before %s were left out", report.rows_too_old, report.since)
    if report.rows_seen:
        left_out = report.rows_seen_left_out
        kept = report.rows_seen - left_out
        logger.info("%d rows were seen in earlier runs: %d left out, %d kept", report.rows_seen, left_out, kept)
    if not report.has_new_rows:
        logger.warning("%s: there is nothing new to train on. %s", report.source, report.why_nothing_new)


def _describe_shapes(tally: Tally) -> str:
    """Say how many rows, valid or not, have which shape."""
    found = (tally.valid_shapes + tally.invalid_shapes).most_common()
    rows = [
        f"{count:,} rows of {shape}" if not index else f"{count:,} of {shape}"
        for index, (shape, count) in enumerate(found)
    ]
    return ", ".join(rows) or "no row of a known format"
