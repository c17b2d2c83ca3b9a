"""Runs side by side in the terminal: a column a run, the best value of each line marked."""

import math

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from osft.comparison.comparison import Comparison, Line, Section
from osft.comparison.loss_curves import sparkline

BEST = "*"
LEGEND = f"{BEST} the best of the line. Shares are in points of 100, changes have their 95% interval."
NAME_CHARACTERS = 29
"""Room for the names of lines; longer ones are folded."""

CURVE_CHARACTERS = 14


def render_comparison(comparison: Comparison) -> RenderableType:
    """Return the table, then each run's reasons."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=LEGEND, caption_justify="left")
    names = [section.title for section in comparison.sections]
    names += [_short_name(section, line) for section in comparison.sections for line in section.lines]
    # A width that is given is not shrunk for the runs' sake.
    table.add_column("", overflow="fold", width=min(NAME_CHARACTERS, max(map(len, names))))
    for run in comparison.runs:
        table.add_column(Text(run.run_id), justify="right", overflow="fold")
    for section in comparison.sections:
        _add_section(table, section)
    if curves := _curves(comparison):
        table.add_row(Text("train_loss"), *map(Text, curves))
    parts: list[RenderableType] = [table]
    for run in comparison.runs:
        if run.report is not None:
            parts += [Text(run.run_id, style="bold"), *(Text(f"  {reason}") for reason in run.report.reasons)]
    if comparison.same_settings:
        parts.append(Text(f"{len(comparison.same_settings)} settings are the same for all.", style="dim"))
    return Group(*parts)


def _add_section(table: Table, section: Section) -> None:
    table.add_row(Text(section.title, style="dim"))
    for line in section.lines:
        table.add_row(Text(_short_name(section, line)), *_cells(line))
    table.add_section()


def _short_name(section: Section, line: Line) -> str:
    """Return a line's name; below the name of its task the rest of it, so that the table fits 80 characters."""
    return f"  {line.name.removeprefix(section.title)}"


def _cells(line: Line) -> list[Text]:
    return [
        Text(f"{BEST}{cell.text}" if cell.is_best else cell.text, style="bold green" if cell.is_best else "")
        for cell in line.cells
    ]


def _curves(comparison: Comparison) -> list[str]:
    """Return each run's loss as blocks on one scale, nothing if no run has any."""
    losses = [point.loss for run in comparison.runs for point in run.loss if math.isfinite(point.loss)]
    if not losses:
        return []
    return [sparkline(run.loss, CURVE_CHARACTERS, top=max(losses)) for run in comparison.runs]
