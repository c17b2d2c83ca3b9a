"""The page that says what processing made of a data set: rows to train on, tokens, and what was lost on the way."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osft.data.pages import draw_histogram, format_share, plural, write_data_page
from osft.pages import format_count

# Only for the types: this module is to be read without torch, which processing loads, and may be called from there.
if TYPE_CHECKING:
    from osft.data.processing.report import ProcessingReport
    from osft.data.processing.splitting import SplitReport

TEMPLATE_NAME = "processing.html.j2"
MAX_LINES = 100
CHART_WIDTH_INCHES = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One line of the table of splits, as text."""

    name: str
    rows: str
    tokens: str
    trained_tokens: str
    trained_share: str
    mean_tokens: str


def write_processing_page(report: "ProcessingReport", target: Path) -> None:
    """Write the page of ``report`` to ``target``, atomically."""
    too_long = report.rows_dropped_too_long + report.rows_truncated
    write_data_page(
        target,
        TEMPLATE_NAME,
        report=report,
        row_name="block" if report.output_format == "documents" else "row",
        verdict=verdict_sentence(report),
        remarks=remarks(report),
        sides=[_side("to train on", report.train), _side("held out", report.holdout)],
        trained_share=format_share(report.train.trained_tokens, report.train.tokens),
        holdout_share=format_share(report.rows_holdout, report.rows_train + report.rows_holdout),
        too_long=too_long,
        lines=_as_ranges(report.too_long_lines[:MAX_LINES]),
        more_lines=too_long - min(len(report.too_long_lines), MAX_LINES),
        chart=draw_histogram(
            report.length_histogram,
            title="Length of a row in tokens",
            unit="tokens",
            mark=(report.config.max_seq_len, f"max_seq_len {format_count(report.config.max_seq_len)}"),
            width_inches=CHART_WIDTH_INCHES,
        ),
        settings={name.replace("_", " "): value for name, value in asdict(report.config).items() if value is not None},
    )


def verdict_sentence(report: "ProcessingReport") -> str:
    """Return the outcome in one sentence."""
    noun = "block" if report.output_format == "documents" else "row"
    return f"{plural(report.rows_train, noun)} to train on, {format_count(report.rows_holdout)} held out."


def remarks(report: "ProcessingReport") -> list[str]:
    """Return what a person should know before training, a sentence or two each; nothing lost gives an empty list."""
    found = []
    if report.rows_dropped_too_long:
        share = format_share(report.rows_dropped_too_long, report.rows_in)
        found.append(
            f"{plural(report.rows_dropped_too_long, 'row')} ({share}) were dropped, too long for max_seq_len "
            f"{format_count(report.config.max_seq_len)}. The longest has {format_count(report.lengths.max)} tokens; "
            f"95% of the rows have at most {format_count(report.lengths.p95)}."
        )
    if report.rows_truncated:
        found.append(
            f"{plural(report.rows_truncated, 'row')} were cut at max_seq_len "
            f"{format_count(report.config.max_seq_len)}: the end of their text is not trained."
        )
    if report.messages_not_rendered:
        found.append(
            f"The chat template leaves out {plural(report.messages_not_rendered, 'system or user message')}: "
            "the model never sees them."
        )
    if report.reasoning_not_rendered:
        found.append(
            f"The chat template leaves out the reasoning of {plural(report.reasoning_not_rendered, 'assistant turn')}: "
            "it is not trained."
        )
    if report.rows_with_control_text:
        found.append(
            f"{plural(report.rows_with_control_text, 'row')} spell out a special token in a message. It was kept as "
            "text and is no control token."
        )
    if report.rows_holdout == 0:
        found.append("No row is held out: how well the model does on unseen rows cannot be measured.")
    return found


def _side(name: str, split: "SplitReport") -> Side:
    return Side(
        name=name,
        rows=format_count(split.rows),
        tokens=format_count(split.tokens),
        trained_tokens=format_count(split.trained_tokens),
        trained_share=format_share(split.trained_tokens, split.tokens) if split.tokens else "",
        mean_tokens=f"{split.tokens / split.rows:,.1f}" if split.rows else "",
    )


def _as_ranges(lines: Sequence[int]) -> str:
    """Return increasing numbers as text, ``4, 7-9``."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}\N{EN DASH}{last}" for first, last in ranges)
