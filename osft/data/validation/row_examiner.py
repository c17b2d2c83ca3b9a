"""The verdict on one line: what is to be written for it, every problem that it has, or that it is not asked for.

Nearly every row is right. It is parsed once and looked at by :mod:`osft.data.validation.plain_rows`; only when that is
not satisfied does the row get the thorough look that names the problems.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

import orjson

from osft.data.increments.row_hash import row_hash
from osft.data.increments.times import read_time
from osft.data.validation.conversions import convert, original_path, output_format, recognize
from osft.data.validation.findings import RowProblem, quote
from osft.data.validation.json_lines import ESCAPED_NUL, MAX_NESTING, check_text, has_keys, json_type, measure
from osft.data.validation.plain_rows import plain_check
from osft.data.validation.rows import RowFacts, parse_row, row_checker

AUTO = "auto"
CONVERTED_FORMATS = ("sharegpt", "alpaca", "prompt_completion")
# A hostile row must fill neither the report nor the memory.
MAX_FINDINGS_PER_ROW = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRules:
    """What makes a row valid."""

    data_format: str
    """What was asked for."""

    output_format: str
    """What valid rows hold in the end: messages, documents or processed."""

    document_column: str
    unmask_messages: bool
    since_seconds: float | None = None
    """Rows from then on, in seconds since 1970; ``None``: of any time."""

    time_column: str = ""

    @property
    def converts(self) -> bool:
        """Whether rows may change."""
        return self.data_format == AUTO or self.data_format in CONVERTED_FORMATS


class Unwanted(Enum):
    """Verdicts on rows that nobody asked for, right or wrong."""

    TOO_OLD = "too old"


class RowExaminer:
    """Examines rows one after the other, and gathers what the report counts of them."""

    def __init__(self, rules: RowRules) -> None:
        """Start without rows."""
        self.facts = RowFacts()
        """Of the valid rows."""

        self.hashes: list[bytes] = []
        """Of each valid row, what is trained in it."""

        self.valid_shapes: list[str] = []
        """Of each valid row, if rows may change."""

        self.invalid_shapes: Counter[str] = Counter()
        """Shapes of rows that have one and are not valid."""

        self._rules = rules
        self._converts = rules.converts
        self._since = rules.since_seconds
        options = {"unmask_messages": rules.unmask_messages}
        self._check = row_checker(rules.output_format, rules.document_column, **options)
        self._count_plain = plain_check(rules.output_format, rules.document_column, **options)
        self._hash = row_hash(rules.output_format, rules.document_column)

    def accept(self, raw: bytes) -> bytes | None:
        """Return what is to be written for a line if one quick look shows that it is valid, else ``None``."""
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        # json gives texts as they are, so a NUL that passed it was written as an escape.
        if type(row) is not dict or ESCAPED_NUL in raw:
            return None
        if self._since is not None and self._judge_time(row, self._since) is not None:
            return None
        if self._converts:
            return self._accept_shaped(raw, row)
        mark = self.facts.mark()
        keys = self._count_plain(row, self.facts)
        if keys < 0 or not has_keys(raw, keys):
            self.facts.forget(mark)
            return None
        self.hashes.append(self._hash(row))
        return raw

    def examine(self, raw: bytes) -> bytes | list[RowProblem] | Unwanted:
        """Return what is to be written for a line, its first :data:`MAX_FINDINGS_PER_ROW` problems, or neither."""
        row = parse_row(raw)
        if isinstance(row, tuple):
            return [row]
        if self._since is not None and (verdict := self._judge_time(row, self._since)) is not None:
            return verdict
        if problem := check_text(raw, row):
            return [problem]
        shape = self._shape_of(row)
        facts = RowFacts()
        fields, problems = self._convert(row, shape, facts)
        if problems:
            self.invalid_shapes.update([shape] if shape else [])
            return problems
        self.facts.extend(facts)
        return self._write(raw, row, fields, shape)

    def _judge_time(self, row: dict[str, Any], since: float) -> list[RowProblem] | Unwanted | None:
        """Return what keeps ``row`` from being one that was asked for, ``None`` if nothing does."""
        column = self._rules.time_column
        value = row.get(column)
        if value is None:
            return [("time-missing", column, f"The row has no time in '{column}', so it may be old or new.")]
        seconds = read_time(value)
        if seconds is None:
            text = quote(value) if isinstance(value, str) else json_type(value)
            message = f"{text} is no time: neither ISO 8601 nor seconds or milliseconds since 1970, or before 1990."
            return [("time-unreadable", column, message)]
        return Unwanted.TOO_OLD if seconds < since else None

    def _accept_shaped(self, raw: bytes, row: dict[str, Any]) -> bytes | None:
        """Do what :meth:`accept` does for a row that may have to be converted."""
        shape = self._shape_of(row)
        keys, depth = measure(row)
        if self._refuse_shape(shape) or depth > MAX_NESTING or not has_keys(raw, keys):
            return None
        fields = convert(row, shape)
        mark = self.facts.mark()
        if isinstance(fields, list) or self._count_plain(fields, self.facts) < 0:
            self.facts.forget(mark)
            return None
        return self._write(raw, row, fields, shape)

    def _shape_of(self, row: dict[str, Any]) -> str:
        """Return the shape of ``row``, empty if it is not known."""
        rules = self._rules
        return rules.data_format if rules.data_format != AUTO else recognize(row, rules.document_column) or ""

    def _refuse_shape(self, shape: str) -> RowProblem | None:
        """Return why a row of ``shape`` cannot stand in this file."""
        if not shape:
            return (
                "format-unknown",
                "",
                "The row has the keys of no known format. If it is a text, name its column: document_column.",
            )
        if output_format(shape) != self._rules.output_format:
            held = self._rules.output_format
            return "other-format", "", f"The row has the shape of {shape}; what the file holds is read as {held}."
        return None

    def _convert(self, row: dict[str, Any], shape: str, facts: RowFacts) -> tuple[dict[str, Any], list[RowProblem]]:
        """Return the row in its output format and its problems, named as the row was before."""
        if problem := self._refuse_shape(shape):
            return row, [problem]
        fields = convert(row, shape)
        if isinstance(fields, list):
            return row, fields[:MAX_FINDINGS_PER_ROW]
        problems = islice(self._check(fields, facts), MAX_FINDINGS_PER_ROW)
        return fields, [(code, original_path(row, shape, path), message) for code, path, message in problems]

    def _write(self, raw: bytes, row: dict[str, Any], fields: dict[str, Any], shape: str) -> bytes:
        """Note a valid row and return its line: the one that came in, unless the row was converted."""
        self.valid_shapes.append(shape)
        self.hashes.append(self._hash(fields))
        return raw if fields is row else orjson.dumps(fields)
