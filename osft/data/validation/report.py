"""What validation found in a file of rows, and the sums from which that is told."""

from collections import Counter
from dataclasses import dataclass, field

from osft.data.validation.chunk_check import ChunkResult, ChunkSettings
from osft.data.validation.duplicates import Duplicates
from osft.data.validation.findings import Finding
from osft.data.validation.rows import ROLES

# The report is read by people and by the UI; quarantine.jsonl keeps every row with its findings.
MAX_REPORTED_FINDINGS = 10_000
MAX_REPORTED_WARNINGS = 1_000
# A file whose every row has keys of its own must not fill the memory.
MAX_EXTRA_KEYS = 1_000
OTHER_KEYS = "(other keys)"
DUPLICATE_ROW = "duplicate-row"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """What validation found; saved as ``validation.json``."""

    source: str
    """Name of the file that was checked."""

    data_format: str
    """What was asked for."""

    output_format: str
    """What ``valid.jsonl`` holds: messages, documents or processed."""

    shapes: dict[str, int]
    """Shape that valid rows had -> how many; all but those of ``output_format`` were converted."""

    rows_in: int
    """Lines that are not blank: ``rows_valid + rows_quarantined``, and those of an increment's that are left out."""

    rows_valid: int
    """Rows of ``valid.jsonl``; all that follows about valid rows is about these."""

    rows_quarantined: int
    rows_too_old: int
    """Rows from before ``since``; left out, and not looked at any further."""

    rows_seen: int
    """Valid rows that earlier runs had: trained on, held out, or dropped as too long for this one as well."""

    rows_seen_left_out: int
    """Those of them that were left out: all, or with ``force`` the held-out ones."""

    since: str | None
    """Time from which on rows were taken, in UTC; ``None``: of any time."""

    time_column: str | None
    seen_files: int
    """Earlier runs whose rows are known."""

    force: bool
    """Whether the rows that earlier runs trained on were kept."""

    unchanged_since: str | None
    """The version whose run had the same source, byte for byte."""

    blank_lines: int
    findings: tuple[Finding, ...]
    """The first :data:`MAX_REPORTED_FINDINGS`, in the order of lines."""

    findings_total: int
    counts_by_code: dict[str, int]
    warnings: tuple[Finding, ...]
    """The first :data:`MAX_REPORTED_WARNINGS` about rows that stay, in the order of lines."""

    counts_by_warning: dict[str, int]
    rows_duplicated: int
    """Valid rows that equal an earlier one."""

    roles: dict[str, int]
    """Messages of each role, in valid rows."""

    turns: dict[str, int]
    """Number of messages -> number of valid rows that have so many."""

    extra_keys: dict[str, int]
    """Keys outside the schema in valid rows, ``messages[].name`` for those of messages; nothing reads them."""

    row_bytes: dict[str, int]
    """Power of two -> valid rows that have at most so many bytes, and more than half."""

    content_characters: dict[str, dict[str, int]]
    """Role, or ``document`` -> power of two -> texts of at most so many characters, and more than half."""

    on_invalid: str
    max_invalid_fraction: float
    accepted: bool
    """Whether the valid rows may be used."""

    @property
    def has_new_rows(self) -> bool:
        """Whether a row is left to be trained; of an accepted file only earlier runs or the time leave none."""
        return self.rows_valid > 0

    @property
    def why_nothing_new(self) -> str:
        """Why no row is left, in a few sentences; empty if one is."""
        if self.has_new_rows:
            return ""
        which = "earlier runs held out" if self.force else "earlier runs had"
        reasons = [f"Valid rows, all of which {which}: {self.rows_seen}."] if self.rows_seen else []
        if self.rows_too_old:
            reasons.append(f"Rows from before {self.since}: {self.rows_too_old}.")
        if self.unchanged_since:
            reasons.insert(0, f"The source is the same as that of {self.unchanged_since}, byte for byte.")
        return " ".join(reasons)

    @property
    def rows_examined(self) -> int:
        """Rows of which every one was checked: all but those that are too old."""
        return self.rows_in - self.rows_too_old


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """When the valid rows may be used without the others."""

    on_invalid: str
    max_invalid_fraction: float


@dataclass(slots=True)
class Tally:
    """The sums over the chunks of a file."""

    rows_in: int = 0
    rows_valid: int = 0
    rows_quarantined: int = 0
    blank_lines: int = 0
    rows_too_old: int = 0
    rows_seen: int = 0
    rows_seen_left_out: int = 0
    findings: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    rows_duplicated: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    valid_shapes: Counter[str] = field(default_factory=Counter)
    invalid_shapes: Counter[str] = field(default_factory=Counter)
    texts: Counter[tuple[str, int]] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    extra_keys: Counter[str] = field(default_factory=Counter)
    row_bytes: Counter[int] = field(default_factory=Counter)

    def add(self, result: ChunkResult) -> None:
        """Add what was found in the next chunk; the rows that were written are counted by who writes them."""
        self.rows_in += result.rows_in
        self.blank_lines += result.blank_lines
        self.rows_too_old += result.rows_too_old
        self.rows_seen += result.rows_seen
        self.rows_seen_left_out += result.rows_seen_left_out
        self.findings += result.findings[: MAX_REPORTED_FINDINGS - len(self.findings)]
        self.codes.update(result.codes)
        self.valid_shapes.update(result.valid_shapes)
        self.invalid_shapes.update(result.invalid_shapes)
        self.texts.update(result.texts)
        self.turns.update(result.turns)
        self.row_bytes.update(result.row_bytes)
        for key, count in result.extra_keys.items():
            is_counted = key in self.extra_keys or len(self.extra_keys) < MAX_EXTRA_KEYS
            self.extra_keys[key if is_counted else OTHER_KEYS] += count

    def add_duplicates(self, duplicates: Duplicates, settings: ChunkSettings) -> None:
        """Add a warning for each row that equals an earlier one."""
        self.rows_duplicated = duplicates.rows
        for line, offset, first_line in duplicates.first.tolist():
            message = f"The row equals that of line {first_line}; it stays, and is trained as often as it is there."
            warning = Finding(
                file=settings.path.name,
                line=line,
                offset=offset,
                path="",
                code=DUPLICATE_ROW,
                message=message,
                origin=settings.origins.of(line),
            )
            self.warnings.append(warning)

    def report(self, settings: ChunkSettings, acceptance: Acceptance, *, accepted: bool) -> ValidationReport:
        """Return the report on the file of ``settings``."""
        rules, increment = settings.rules, settings.increment
        since, time_column = increment.since, increment.time_column if increment.since else None
        return ValidationReport(
            source=settings.path.name,
            data_format=rules.data_format,
            output_format=rules.output_format,
            shapes=dict(self.valid_shapes.most_common()),
            rows_in=self.rows_in,
            rows_valid=self.rows_valid,
            rows_quarantined=self.rows_quarantined,
            rows_too_old=self.rows_too_old,
            rows_seen=self.rows_seen,
            rows_seen_left_out=self.rows_seen_left_out,
            since=since.isoformat(timespec="seconds") if since else None,
            time_column=time_column,
            seen_files=len(increment.seen_rows),
            force=increment.force,
            unchanged_since=increment.unchanged_since,
            blank_lines=self.blank_lines,
            findings=tuple(self.findings),
            findings_total=self.codes.total(),
            counts_by_code=dict(self.codes.most_common()),
            warnings=tuple(self.warnings),
            counts_by_warning={DUPLICATE_ROW: self.rows_duplicated} if self.rows_duplicated else {},
            rows_duplicated=self.rows_duplicated,
            roles=self._roles(),
            turns={str(turns): count for turns, count in sorted(self.turns.items())},
            extra_keys={key: rows for key, rows in self.extra_keys.most_common() if key != time_column},
            row_bytes={str(1 << exponent): count for exponent, count in sorted(self.row_bytes.items())},
            content_characters=self._content_characters(),
            on_invalid=acceptance.on_invalid,
            max_invalid_fraction=acceptance.max_invalid_fraction,
            accepted=accepted,
        )

    def _roles(self) -> dict[str, int]:
        """Return the messages of each role, the most frequent first."""
        roles: Counter[str] = Counter()
        for (kind, _), count in self.texts.items():
            roles[kind] += count if kind in ROLES else 0
        return {role: count for role, count in roles.most_common() if count}

    def _content_characters(self) -> dict[str, dict[str, int]]:
        """Return for each kind of text how many there are of each length."""
        lengths: dict[str, dict[str, int]] = {}
        for (kind, exponent), count in sorted(self.texts.items()):
            lengths.setdefault(kind, {})[str(1 << exponent)] = count
        return lengths
