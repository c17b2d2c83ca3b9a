"""Runs side by side in the terminal: a column a run, the best value of each line marked."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from osft.comparison.comparison import Cell, Comparison, Line, Section
from osft.comparison.loss_curves import sparkline

BEST = "*"
LEGEND = f"{BEST} the best of the line. Shares are in points of 100, changes have their 95% interval."
NAME_CHARACTERS = 29
"""Room for the names of lines; longer ones are folded."""

CURVE_CHARACTERS = 14
RUN_CHARACTERS = 14
"""Room for a run: a change in points and, below it, its interval."""

SPACE = 2
"""Between columns."""


def render_comparison(comparison: Comparison, width: int) -> RenderableType:
    """Return the table, then each run's reasons.

    Args:
        comparison: at least two runs.
        width: characters of a line; runs that do not fit beside each other are left out, the first ones, and a line
            below says so. What is the best of a line is the best of all runs.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=LEGEND, caption_justify="left")
    names = [section.title for section in comparison.sections]
    names += [_short_name(section, line) for section in comparison.sections for line in section.lines]
    name_width = min(NAME_CHARACTERS, max(map(len, names)))
    left_out = max(0, len(comparison.runs) - max(2, (width - name_width) // (RUN_CHARACTERS + SPACE)))
    if left_out:
        table.caption = f"{left_out} run{'' if left_out == 1 else 's'} left out; the page has all (--html).\n{LEGEND}"
    # A width that is given is not shrunk for the runs' sake.
    table.add_column("", overflow="fold", width=name_width)
    shown = comparison.runs[left_out:]
    for run in shown:
        table.add_column(Text(run.run_id), justify="right", overflow="fold")
    for section in comparison.sections:
        _add_section(table, section, left_out)
    if curves := _curves(comparison)[left_out:]:
        table.add_row(Text("train_loss"), *map(Text, curves))
    parts: list[RenderableType] = [table]
    for run in shown:
        if run.report is not None:
            parts += [Text(run.run_id, style="bold"), *(Text(f"  {reason}") for reason in run.report.reasons)]
    if comparison.same_settings:
        parts.append(Text(f"{len(comparison.same_settings)} settings are the same for all.", style="dim"))
    return Group(*parts)


def _add_section(table: Table, section: Section, left_out: int) -> None:
    table.add_row(Text(section.title, style="dim"))
    for line in section.lines:
        table.add_row(Text(_short_name(section, line)), *_cells(line.cells[left_out:]))
    table.add_section()


def _short_name(section: Section, line: Line) -> str:
    """Return a line's name; below the name of its task the rest of it, so that the table fits 80 characters."""
    return f"  {line.name.removeprefix(section.title)}"


def _cells(cells: Sequence[Cell]) -> list[Text]:
    return [
        Text(f"{BEST}{cell.text}" if cell.is_best else cell.text, style="bold green" if cell.is_best else "")
        for cell in cells
    ]


def _curves(comparison: Comparison) -> list[str]:
    """Return each run's loss as blocks on one scale, nothing if no run has any."""
    losses = [point.loss for run in comparison.runs for point in run.loss if math.isfinite(point.loss)]
    if not losses:
        return []
    return [sparkline(run.loss, CURVE_CHARACTERS, top=max(losses)) for run in comparison.runs]
