"""Check every row of a JSON Lines file and part the valid rows from the invalid ones.

The messages schema is the one of the OSFT guide: ``role`` is system, user, assistant or pretraining, ``content``
is text, an assistant turn may carry ``reasoning_content``, and a row may carry the boolean ``unmask``, which
widens the loss of that row from assistant turns to everything but system messages. ``unmask`` belongs to the row,
as in instructlab-training, the format's origin; on a message it is a key like any other unknown one.

One streaming pass, never a sample: memory is bounded by the longest line and by the findings kept for the report.
Blank lines are no rows; they are counted. Keys outside the schema are allowed (ids, sources) and counted, since
no later step reads them. What one row must hold is in :mod:`osft.data.rows`.
"""

import base64
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Literal, get_args

import orjson

from osft.data.progress import RowProgress
from osft.data.rows import Finding, RowChecker, RowFacts, parse_row, row_checker
from osft.errors import ConfigError, DataError, MissingPathError
from osft.workspace import atomic_file, write_json

logger = logging.getLogger(__name__)

OnInvalid = Literal["fail", "drop"]
ROWS_NAME = "rows.jsonl"
VALID_NAME = "valid.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"
REPORT_NAME = "report.json"
# The report is read by people and by the UI; quarantine.jsonl keeps every finding.
MAX_REPORTED_FINDINGS = 10_000
ROWS_NAMED_IN_ERROR = 3
# A file whose every row has keys of its own must not fill the memory.
MAX_EXTRA_KEYS = 1_000
OTHER_KEYS = "(other keys)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """What validation found; saved as ``report.json``."""

    source: str
    """Name of the file that was checked."""

    data_format: str
    rows_in: int
    """Lines that are not blank: ``rows_valid + rows_quarantined``."""

    rows_valid: int
    rows_quarantined: int
    blank_lines: int
    findings: tuple[Finding, ...]
    """The first :data:`MAX_REPORTED_FINDINGS`, in the order of lines."""

    findings_total: int
    counts_by_code: dict[str, int]
    roles: dict[str, int]
    """Messages of each role, in valid rows."""

    turns: dict[str, int]
    """Number of messages -> number of valid rows that have so many."""

    extra_keys: dict[str, int]
    """Keys outside the schema in valid rows, ``messages[].name`` for those of messages; nothing reads them."""


@dataclass(slots=True)
class _Tally:
    """The counts while rows stream past."""

    rows_valid: int = 0
    rows_quarantined: int = 0
    blank_lines: int = 0
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    extra_keys: Counter[str] = field(default_factory=Counter)

    def add_valid(self, facts: RowFacts) -> None:
        self.rows_valid += 1
        self.roles.update(facts.roles)
        if facts.roles:
            self.turns[str(len(facts.roles))] += 1
        for key in facts.extra_keys:
            known = key in self.extra_keys or len(self.extra_keys) < MAX_EXTRA_KEYS
            self.extra_keys[key if known else OTHER_KEYS] += 1

    def add_invalid(self, findings: list[Finding]) -> None:
        self.rows_quarantined += 1
        self.findings_total += len(findings)
        self.codes.update(finding.code for finding in findings)
        self.findings.extend(findings[: MAX_REPORTED_FINDINGS - len(self.findings)])


def validate_dataset(
    source: Path,
    output: Path,
    *,
    data_format: str = "messages",
    on_invalid: str = "fail",
    max_invalid_fraction: float = 0.0,
    document_column: str = "document",
    unmask_messages: bool = False,
) -> ValidationReport:
    """Check every row of ``source``; leave ``valid.jsonl``, ``quarantine.jsonl`` and ``report.json`` in ``output``.

    Valid rows are copied byte for byte. An invalid one becomes an object in ``quarantine.jsonl`` with ``line``,
    ``findings`` and ``raw`` (its text) or, if it is not UTF-8, ``raw_base64``. The three files are whole also
    when the check fails.

    Args:
        source: a JSON Lines file, or a folder that holds ``rows.jsonl``.
        output: folder for the three files; created if missing.
        data_format: ``messages``, ``processed`` (``input_ids`` and ``labels``) or ``documents``.
        on_invalid: ``fail`` allows no invalid row, ``drop`` goes on without them.
        max_invalid_fraction: with ``drop``, the largest share of invalid rows, 0 to 1, that is still accepted.
        document_column: with ``documents``, the column that holds the text.
        unmask_messages: everything but system messages is to be trained, so a row needs no assistant turn.

    Raises:
        ConfigError: if a parameter has a value that is not allowed.
        MissingPathError: if there is no such file.
        DataError: if too many rows are invalid, no valid one is left, or there is no row at all.
    """
    _check_parameters(on_invalid, max_invalid_fraction)
    check = row_checker(data_format, document_column, unmask_messages=unmask_messages)
    path = jsonl_file(source, ROWS_NAME)
    if path.resolve() in {(output / name).resolve() for name in (VALID_NAME, QUARANTINE_NAME, REPORT_NAME)}:
        raise ConfigError(f"output '{output}' would overwrite the source {path}. Choose another folder.")
    tally = _partition_rows(path, output, check)
    report = ValidationReport(
        source=path.name,
        data_format=data_format,
        rows_in=tally.rows_valid + tally.rows_quarantined,
        rows_valid=tally.rows_valid,
        rows_quarantined=tally.rows_quarantined,
        blank_lines=tally.blank_lines,
        findings=tuple(tally.findings),
        findings_total=tally.findings_total,
        counts_by_code=dict(tally.codes.most_common()),
        roles=dict(tally.roles.most_common()),
        turns=dict(sorted(tally.turns.items(), key=lambda item: int(item[0]))),
        extra_keys=dict(tally.extra_keys.most_common()),
    )
    write_json(output / REPORT_NAME, asdict(report))
    _judge(report, path, output / QUARANTINE_NAME, on_invalid, max_invalid_fraction)
    logger.info(
        "%s: %d rows, %d valid, %d invalid", path.name, report.rows_in, report.rows_valid, report.rows_quarantined
    )
    return report


def jsonl_file(source: Path, name: str) -> Path:
    """Return ``source``, or the file ``name`` in it if it is a folder.

    Raises:
        MissingPathError: if that file does not exist.
    """
    path = source / name if source.is_dir() else source
    if not path.is_file():
        raise MissingPathError(f"{path}: there is no such file. Give a JSON Lines file or a folder that holds {name}.")
    return path


def _check_parameters(on_invalid: str, max_invalid_fraction: float) -> None:
    if on_invalid not in get_args(OnInvalid):
        raise ConfigError(f"on_invalid is '{on_invalid}'; allowed are {', '.join(get_args(OnInvalid))}.")
    if not 0.0 <= max_invalid_fraction <= 1.0:
        raise ConfigError(f"max_invalid_fraction is {max_invalid_fraction}; allowed is a number from 0 to 1.")


def _partition_rows(path: Path, output: Path, check: RowChecker) -> _Tally:
    """Stream ``path`` once; every line that is not blank ends in exactly one of the two files."""
    tally = _Tally()
    rows_in = 0
    progress = RowProgress(logger, "validated")
    with (
        path.open("rb") as lines,
        atomic_file(output / VALID_NAME) as valid,
        atomic_file(output / QUARANTINE_NAME) as quarantine,
    ):
        for number, line in enumerate(lines, start=1):
            raw = line.removesuffix(b"\n")
            progress.advance(1, len(line))
            if not raw.strip():
                tally.blank_lines += 1
                continue
            rows_in += 1
            facts = RowFacts()
            if findings := check_line(raw, number, check, facts):
                tally.add_invalid(findings)
                _write_quarantined(quarantine, raw, number, findings)
            else:
                tally.add_valid(facts)
                valid.write(raw + b"\n")
    if rows_in != tally.rows_valid + tally.rows_quarantined:
        raise AssertionError(f"{path}: {rows_in} rows came in, and not as many went out")
    return tally


def check_line(raw: bytes, number: int, check: RowChecker, facts: RowFacts) -> list[Finding]:
    """Return every finding of one line; an empty list means that the row is valid."""
    row = parse_row(raw)
    problems = [row] if isinstance(row, tuple) else check(row, facts)
    return [Finding(line=number, code=code, path=path, message=text) for code, path, text in problems]


def _write_quarantined(file: IO[bytes], raw: bytes, number: int, findings: list[Finding]) -> None:
    entry: dict[str, object] = {"line": number, "findings": [asdict(finding) for finding in findings]}
    try:
        entry["raw"] = raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(raw).decode("ascii")
    file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))


def _judge(
    report: ValidationReport, path: Path, quarantine: Path, on_invalid: str, max_invalid_fraction: float
) -> None:
    """Raise DataError if the rows that are left must not be used."""
    if report.rows_in == 0:
        raise DataError(f"{path}: the file holds no rows. Give a JSON Lines file with one object a line.")
    if report.rows_quarantined == 0:
        return
    counted = f"{path}: {report.rows_quarantined} of {report.rows_in} rows are invalid ({_first_rows(report)})."
    where = f"All of them are in {quarantine}"
    if on_invalid == "fail":
        raise DataError(f"{counted} {where}; mend the source or choose on_invalid=drop with max_invalid_fraction.")
    fraction = report.rows_quarantined / report.rows_in
    if fraction > max_invalid_fraction:
        limit = f"that is {fraction:.4f}, more than max_invalid_fraction {max_invalid_fraction}"
        raise DataError(f"{counted} {where}; {limit}. Mend the source or raise the limit.")
    if report.rows_valid == 0:
        raise DataError(f"{counted} {where}; no valid row is left. Mend the source.")
    logger.warning("%s %s; they are dropped", counted, where)


def _first_rows(report: ValidationReport) -> str:
    """Name the first few invalid rows with the first finding of each."""
    first: dict[int, Finding] = {}
    for finding in report.findings:
        first.setdefault(finding.line, finding)
        if len(first) == ROWS_NAMED_IN_ERROR:
            break
    named = [f"line {line}, {item.path or 'row'}: {item.message} [{item.code}]" for line, item in first.items()]
    more = report.rows_quarantined - len(first)
    return "; ".join(named) + (f"; and {more} more" if more else "")
