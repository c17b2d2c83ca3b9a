"""The page that says whether a data set was accepted, and what was found in it.

It answers in this order: accepted or refused, and why; how many rows; what is wrong, by kind, with examples; what to do
next; then what the rows are like. It holds examples only: ``quarantine.jsonl`` has every finding and the row itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from osft.data.pages import draw_histogram, draw_numbers, format_share, plural, write_data_page
from osft.data.validation.conversions import output_format
from osft.data.validation.explanations import EXPLANATIONS
from osft.data.validation.findings import Finding
from osft.data.validation.report import ValidationReport
from osft.pages import format_count

TEMPLATE_NAME = "validation.html.j2"
MAX_EXAMPLES = 5
MAX_CODES = 60
MAX_KEYS = 40
OPEN_GROUPS = 3
"""Kinds of findings whose examples are seen without a click."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One distribution."""

    title: str
    svg: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingGroup:
    """The findings of one kind."""

    code: str
    count: int
    explanation: str
    examples: tuple[Finding, ...]


def write_validation_page(report: ValidationReport, target: Path) -> None:
    """Write the page of ``report`` to ``target``, atomically."""
    write_data_page(
        target,
        TEMPLATE_NAME,
        report=report,
        verdict=verdict_sentence(report),
        reason=_reason(report),
        steps=next_steps(report),
        findings=_group(report.counts_by_code, report.findings),
        warnings=_group(report.counts_by_warning, report.warnings),
        max_codes=MAX_CODES,
        open_groups=OPEN_GROUPS,
        valid_share=format_share(report.rows_valid, report.rows_in) if report.rows_in else "",
        quarantined_share=format_share(report.rows_quarantined, report.rows_in) if report.rows_in else "",
        shapes=[(shape, rows, output_format(shape)) for shape, rows in report.shapes.items() if rows],
        roles=_bars(report.roles),
        charts=_charts(report),
        extra_keys=_most_common(report.extra_keys, MAX_KEYS),
    )


def verdict_sentence(report: ValidationReport) -> str:
    """Return the outcome in one sentence."""
    if report.rows_in == 0:
        return f"{report.source} holds no rows."
    if report.accepted and not report.has_new_rows:
        return f"There is nothing new in {report.source}."
    if report.rows_quarantined == 0 and report.rows_valid < report.rows_in:
        return f"{plural(report.rows_valid, 'row')} of {report.source} can be used, of {format_count(report.rows_in)}."
    if report.rows_quarantined == 0:
        rows = "The only row" if report.rows_in == 1 else f"All {format_count(report.rows_in)} rows"
        return f"{rows} of {report.source} can be used."
    invalid = f"{format_count(report.rows_quarantined)} of {plural(report.rows_examined, 'row')}"
    if report.accepted:
        return f"{report.source} goes on without {invalid}."
    return f"{report.source} was refused: {invalid} cannot be used."


def next_steps(report: ValidationReport) -> list[str]:
    """Return what a person should do now, a sentence each."""
    if report.rows_in == 0:
        return ["Give a file with one JSON object a line."]
    steps = []
    if not report.accepted:
        steps.append(
            "Mend the rows below in the source and run the step again. quarantine.jsonl holds each row with what was "
            "found in it."
        )
        if report.rows_quarantined < report.rows_examined:
            needed = math.ceil(report.rows_quarantined / report.rows_examined * 10_000) / 10_000
            steps.append(f"Or go on without them: on_invalid=drop with max_invalid_fraction={needed:g} or more.")
    else:
        steps.append(
            f"{plural(report.rows_valid, 'row')} can go on to processing."
            if report.has_new_rows
            else "Nothing: without new rows a run ends here. To train once more on what earlier runs were trained on, "
            "set train_force."
        )
        if report.rows_quarantined:
            steps.append(
                "Look at what was left out below; quarantine.jsonl holds these rows, to be mended and added again."
            )
    if report.rows_duplicated:
        verb = "repeats" if report.rows_duplicated == 1 else "repeat"
        steps.append(
            f"{plural(report.rows_duplicated, 'row')} {verb} an earlier one, which so weighs more in training. Remove "
            "what is repeated from the source unless that is wanted."
        )
    if report.extra_keys:
        steps.append("Nothing reads the other keys listed at the end; make sure that no text to be trained is in them.")
    return steps


def _reason(report: ValidationReport) -> str:
    """Say by which rule the rows were accepted or refused, or why there is nothing new."""
    if report.rows_in == 0 or (report.rows_quarantined == 0 and report.has_new_rows):
        return ""
    if report.accepted and not report.has_new_rows:
        return report.why_nothing_new
    share = format_share(report.rows_quarantined, report.rows_examined)
    if report.on_invalid == "fail":
        return f"{share} of the rows are invalid, and on_invalid is fail: one such row refuses the file."
    limit = f"max_invalid_fraction {report.max_invalid_fraction:g}"
    if report.rows_quarantined / report.rows_examined > report.max_invalid_fraction:
        return f"{share} of the rows are invalid, more than {limit}."
    if report.rows_quarantined == report.rows_examined:
        return "No valid row is left."
    return f"{share} of the rows are invalid, within {limit}; they were put aside."


def _group(counts: Mapping[str, int], found: Iterable[Finding]) -> list[FindingGroup]:
    """Return the findings by code, the most frequent first, each with examples from different rows."""
    examples: dict[str, dict[int, Finding]] = {code: {} for code in counts}
    for finding in found:
        rows = examples.setdefault(finding.code, {})
        if len(rows) < MAX_EXAMPLES:
            rows.setdefault(finding.line, finding)
    groups = [
        FindingGroup(
            code=code, count=count, explanation=EXPLANATIONS.get(code, ""), examples=tuple(examples[code].values())
        )
        for code, count in counts.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, group.code))


def _charts(report: ValidationReport) -> list[Chart]:
    """Return the distributions that there is something to see in."""
    charts = []
    if report.turns:
        svg = draw_numbers(report.turns, title="Messages in a conversation", unit="messages in a conversation")
        charts.append(Chart(title="Turns", svg=svg))
    if report.row_bytes:
        svg = draw_histogram(report.row_bytes, title="Size of a row in bytes", unit="bytes")
        charts.append(Chart(title="Size of a row", svg=svg))
    for role, lengths in report.content_characters.items():
        title = "Length of documents" if role == "document" else f"Length of {role} messages"
        if lengths:
            charts.append(Chart(title=title, svg=draw_histogram(lengths, title=title, unit="characters")))
    return charts


def _bars(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Return name, count and length in percent of the longest bar."""
    longest = max(counts.values(), default=1)
    return [(name, count, round(100 * count / longest, 1)) for name, count in _most_common(counts, MAX_KEYS)]


def _most_common(counts: Mapping[str, int], limit: int) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
