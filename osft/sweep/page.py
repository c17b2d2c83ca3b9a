"""A sweep as one HTML page: what was chosen and why, the picture of the trade-off, every ratio, every task.

One file, no script, nothing loaded from anywhere: it shows in a sandboxed frame, and the same sweep gives the same
bytes. Names come from users and from data; the template engine escapes them.
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader

from osft.comparison.comparison import Section, compare_runs
from osft.evaluation.report.points import format_bound, format_points
from osft.pages import write_page
from osft.sweep.chart import draw_trade_off
from osft.sweep.choice import RatioChoice
from osft.sweep.measured_ratio import MeasuredRatio
from osft.sweep.sentences import CAVEAT, LEGEND
from osft.sweep.table import ratio_table

TEMPLATE_NAME = "sweep.html.j2"
TASK_PREFIXES = ("retention.", "target.")
LINE_NAMES = {".base": "before", ".tuned": "after", ".delta": "change", ".best": "best version"}
"""What people read for the metrics of a task."""


def write_sweep_page(choice: RatioChoice, measured: Sequence[MeasuredRatio], path: Path) -> None:
    """Write the page to ``path``, atomically.

    Args:
        choice: the ratio that was chosen.
        measured: every ratio.
        path: the file to write.
    """
    ordered = sorted(measured, key=lambda one: one.ratio)
    write_page(
        path,
        ChoiceLoader([PackageLoader("osft.sweep"), PackageLoader("osft")]),
        TEMPLATE_NAME,
        filters={"points": format_points, "bound": format_bound},
        values={
            "choice": choice,
            "num_passed": sum(one.passed for one in choice.outcomes),
            "chart": draw_trade_off(choice),
            "table": ratio_table(choice),
            "legend": LEGEND,
            "caveat": CAVEAT,
            "sections": _task_sections(ordered),
            "line_names": LINE_NAMES,
        },
    )


def _task_sections(measured: Sequence[MeasuredRatio]) -> list[Section]:
    """Return a section for each task, with a cell for each ratio."""
    sections = compare_runs([one.run for one in measured]).sections
    return [section for section in sections if section.title.startswith(TASK_PREFIXES)]
