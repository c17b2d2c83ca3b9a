"""One chunk of a file of rows checked: which lines are valid, what is wrong with the others, what the report counts.

This is what a worker does. It sends back little: where the valid rows lie, so that they are copied from the file and
not from process to process, and the counts. Rows of a format that is converted travel as bytes.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from osft.data.chunks import Chunk
from osft.data.increments.increment import Increment
from osft.data.increments.seen_rows import SeenRows, split_hashes
from osft.data.validation.conversions import recognize
from osft.data.validation.duplicates import row_records
from osft.data.validation.findings import Finding, Origins, RowProblem
from osft.data.validation.row_examiner import RowExaminer, RowRules, Unwanted
from osft.data.validation.rows import parse_row
from osft.errors import DataError

BYTES_PER_MIB = 1 << 20
FILE_CHANGED = "the file changed while it was read. Validate it again."


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSettings:
    """What is the same for all chunks of a file."""

    path: Path
    rules: RowRules
    origins: Origins
    increment: Increment
    chunk_bytes: int
    """Size that the chunks were cut to, but for their last line."""

    max_line_bytes: int
    max_findings: int
    """Findings that one chunk sends back; all are counted, and stand in the quarantine."""


@dataclass(slots=True)
class ChunkResult:
    """What became of the lines of one chunk."""

    size_bytes: int
    rows_in: int = 0
    """Lines that are not blank, counted apart from all that follows."""

    blank_lines: int = 0
    rows_too_old: int = 0
    rows_seen: int = 0
    """Valid rows that earlier runs had."""

    rows_seen_left_out: int = 0
    """Those of them that are left out."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First byte and size of what is to be copied from the file, if rows stay as they are."""

    converted: bytes = b""
    """The valid rows, if rows may change."""

    quarantine: bytes = b""
    """Lines for the quarantine."""

    findings: list[Finding] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    valid_shapes: Counter[str] = field(default_factory=Counter)
    invalid_shapes: Counter[str] = field(default_factory=Counter)
    texts: Counter[tuple[str, int]] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    extra_keys: Counter[str] = field(default_factory=Counter)
    row_bytes: Counter[int] = field(default_factory=Counter)
    """Power of two that bounds the bytes of a row -> valid rows."""

    rows: NDArray[np.void] = field(default_factory=lambda: row_records(split_hashes(b""), (), ()))
    """Hash, line and offset of the rows that are taken: the valid ones, without those of earlier runs."""


def check_chunk(chunk: Chunk, settings: ChunkSettings) -> ChunkResult:
    """Check every line of ``chunk``.

    Raises:
        DataError: if the file is shorter than when it was cut into chunks.
    """
    data, unread_bytes = _read(chunk, settings)
    check = _ChunkCheck(settings, ChunkResult(size_bytes=chunk.size))
    check.take_lines(data, chunk.start, chunk.first_line)
    if unread_bytes:
        check.take_unread(chunk.first_line + data.count(b"\n"), chunk.start + len(data), unread_bytes)
    return check.finish(chunk.start + chunk.size)


def first_shape(path: Path, max_line_bytes: int, document_column: str) -> str | None:
    """Return the shape of the first row of ``path`` that has a known one."""
    with path.open("rb") as lines:
        is_rest_of_line = False
        while raw := lines.readline(max_line_bytes + 1):
            is_whole = raw.endswith(b"\n") or len(raw) <= max_line_bytes
            row = parse_row(raw) if is_whole and not is_rest_of_line else None
            if isinstance(row, dict) and (shape := recognize(row, document_column)):
                return shape
            is_rest_of_line = not is_whole
    return None


def _read(chunk: Chunk, settings: ChunkSettings) -> tuple[bytes, int]:
    """Return the lines of ``chunk``, and the bytes of a last line that is too long to be read, newline not counted.

    Raises:
        DataError: if the file has become shorter than it was.
    """
    if chunk.size <= settings.chunk_bytes + settings.max_line_bytes:
        lines = chunk.read(settings.path)
        if len(lines) != chunk.size:
            raise DataError(f"{settings.path}: {FILE_CHANGED}")
        return lines, 0
    with settings.path.open("rb") as file:
        file.seek(chunk.start)
        head = file.read(settings.chunk_bytes)
        lines = head[: head.rfind(b"\n") + 1]
        file.seek(chunk.start + chunk.size - 1)
        return lines, chunk.size - len(lines) - (file.read(1) == b"\n")


class _ChunkCheck:
    """The lines of one chunk while they are checked."""

    def __init__(self, settings: ChunkSettings, result: ChunkResult) -> None:
        self._settings = settings
        self._result = result
        self._examiner = RowExaminer(settings.rules)
        self._lines: list[int] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._written: list[bytes] = []
        self._marks: list[tuple[int, int, int]] = []
        self._quarantine: list[bytes] = []

    def take_lines(self, data: bytes, offset: int, first_line: int) -> None:
        """Check the lines of ``data``, which starts at ``offset`` of the file."""
        lines = data.split(b"\n")
        longest = self._settings.max_line_bytes
        self._result.rows_in += sum(1 for line in lines if line.strip() or len(line) > longest)
        last = lines.pop()
        accept, keep, look_closer = self._examiner.accept, self._keep, self._look_closer
        for number, raw in enumerate(lines, start=first_line):
            if len(raw) <= longest and (written := accept(raw)) is not None:
                keep(number, offset, raw, written)
            else:
                look_closer(number, offset, raw)
            offset += len(raw) + 1
        # What follows the last newline; only the end of the file can be there.
        if last:
            look_closer(first_line + len(lines), offset, last)

    def take_unread(self, line: int, offset: int, size: int) -> None:
        """Quarantine a line that is too long to be read."""
        self._result.rows_in += 1
        self._quarantine_row(line, offset, size, [self._too_long(size)])

    def finish(self, end: int) -> ChunkResult:
        """Return what was found in the chunk, which ends before byte ``end``."""
        result, hashes = self._result, split_hashes(b"".join(self._examiner.hashes))
        result.rows = row_records(hashes, self._lines, self._offsets)
        increment = self._settings.increment
        if increment.seen_rows:
            is_seen = SeenRows((*increment.seen_rows, *increment.too_long_rows)).contain(*hashes)
            is_left_out = SeenRows(increment.held_out_rows).contain(*hashes) if increment.force else is_seen
            result.rows_seen = int(is_seen.sum())
            result.rows_seen_left_out = int(is_left_out.sum())
            self._leave_out(is_left_out)
        sizes, facts = np.array(self._sizes, dtype=np.int64), self._examiner.facts
        if self._settings.rules.converts:
            result.converted = b"".join(line + b"\n" for line in self._written)
            result.valid_shapes.update(self._examiner.valid_shapes)
            result.invalid_shapes = self._examiner.invalid_shapes
        else:
            result.ranges = _join(result.rows["offset"], sizes, end)
            result.valid_shapes[self._settings.rules.data_format] = len(sizes)
        result.quarantine = b"".join(self._quarantine)
        result.texts.update(facts.texts)
        result.turns.update(facts.turns)
        result.extra_keys.update(facts.extra_keys)
        # The exponent of n - 1 is its bit length, as in length_class.
        result.row_bytes.update(np.frexp((sizes - 1).astype(np.float64))[1].tolist())
        return result

    def _leave_out(self, is_left_out: NDArray[np.bool_]) -> None:
        """Forget valid rows, and what was noted of them."""
        taken = (~is_left_out).tolist()
        self._result.rows = self._result.rows[~is_left_out]
        self._sizes = list(compress(self._sizes, taken))
        self._written = list(compress(self._written, taken))
        self._examiner.valid_shapes = list(compress(self._examiner.valid_shapes, taken))
        self._examiner.facts = self._examiner.facts.select(self._marks, taken)

    def _keep(self, line: int, offset: int, raw: bytes, written: bytes) -> None:
        """Note one valid row."""
        self._lines.append(line)
        self._offsets.append(offset)
        self._sizes.append(len(raw))
        self._written.append(written)
        if self._settings.increment.seen_rows:
            self._marks.append(self._examiner.facts.mark())

    def _look_closer(self, line: int, offset: int, raw: bytes) -> None:
        """Put a line where it belongs, with every problem that it has."""
        if len(raw) > self._settings.max_line_bytes:
            self._quarantine_row(line, offset, len(raw), [self._too_long(len(raw))])
            return
        if not raw.strip():
            self._result.blank_lines += 1
            return
        verdict = self._examiner.examine(raw)
        if isinstance(verdict, bytes):
            self._keep(line, offset, raw, verdict)
            return
        if isinstance(verdict, Unwanted):
            self._result.rows_too_old += 1
            return
        self._quarantine_row(line, offset, len(raw), verdict, raw)

    def _too_long(self, size: int) -> RowProblem:
        limit = self._settings.max_line_bytes / BYTES_PER_MIB
        message = f"The line has {size / BYTES_PER_MIB:.1f} MiB; at most {limit:g} MiB are read."
        return "line-too-long", "", message

    def _quarantine_row(
        self, line: int, offset: int, size: int, problems: Sequence[RowProblem], raw: bytes | None = None
    ) -> None:
        """Note an invalid row with its problems; without ``raw`` its text stays in the file alone."""
        file, origin = self._settings.path.name, self._settings.origins.of(line)
        entry: dict[str, object] = {"file": file, "line": line, "offset": offset, "size_bytes": size}
        if origin is not None:
            entry["origin"] = origin
        entry["findings"] = [{"path": path, "code": code, "message": text} for code, path, text in problems]
        entry |= {} if raw is None else _readable(raw)
        self._quarantine.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self._result.codes.update(code for code, _, _ in problems)
        room = self._settings.max_findings - len(self._result.findings)
        self._result.findings += [
            Finding(file=file, line=line, offset=offset, path=path, code=code, message=text, origin=origin)
            for code, path, text in problems[:room]
        ]


def _join(offsets: NDArray[np.int64], sizes: NDArray[np.int64], end: int) -> list[tuple[int, int]]:
    """Return first byte and size of each run of rows that follow each other, newlines included."""
    if not len(offsets):
        return []
    ends = np.minimum(offsets + sizes + 1, end)
    breaks = np.flatnonzero(offsets[1:] != ends[:-1]) + 1
    starts = offsets[np.concatenate([[0], breaks])]
    stops = ends[np.concatenate([breaks - 1, [len(ends) - 1]])]
    return list(zip(starts.tolist(), (stops - starts).tolist(), strict=True))


def _readable(raw: bytes) -> dict[str, str]:
    """Return a line as JSON can hold it."""
    try:
        return {"raw": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode("ascii")}
