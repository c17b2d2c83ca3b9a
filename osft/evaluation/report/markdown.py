"""The report as Markdown, for UIs that show no HTML (the pipelines' Markdown artifact).

All that the template inserts is escaped as it is put out, so that a task's name can neither break the table nor become
a link or an element. A backslash escape is what every Markdown reader knows; entities are not.
"""

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    floor_note,
    format_chance,
    format_change,
    format_interval,
    format_number,
    format_score,
    format_share,
    in_order,
    missing_interval,
    name_some,
    pool_notes,
    verdict_sentence,
)
from osft.evaluation.report.points import format_bound, format_points
from osft.evaluation.report.task_rows import BEST_OF_EACH, grouped_tasks, sorted_best
from osft.pages import format_count
from osft.workspace import atomic_file

TEMPLATE_NAME = "summary.md.j2"
ACTIVE = re.compile(r"([\\`*_{}\[\]<>&|~$#!@^])")
"""What starts something in Markdown, wherever it stands in a line."""

ADDRESS = re.compile(r"(?i)(:)(?=//)|(?<=www)(\.)")
"""Where readers with the autolink extension see an address."""


def write_markdown(report: ForgettingReport, path: Path) -> None:
    """Write the summary, atomically."""
    environment = Environment(
        loader=PackageLoader("osft.evaluation.report", package_path=""),
        # Markdown has no autoescape; this is called on all that the template puts out.
        finalize=lambda value: escape_markdown(str(value)),
        autoescape=False,  # noqa: S701 - see finalize; HTML's escapes would show as they are
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=format_points, number=format_number, share=format_share)
    environment.filters.update(chance=format_chance, count=format_count, bound=format_bound)
    summary = environment.get_template(TEMPLATE_NAME).render(
        report=report,
        verdict=verdict_sentence(report),
        groups=grouped_tasks(report),
        best_tasks=[
            *((best.comparison, best.version) for best in sorted_best(report)),
            *((pool.comparison, BEST_OF_EACH) for pool in report.best_pools),
        ],
        notes=pool_notes(report.pools),
        best_notes=pool_notes(report.best_pools),
        unbounded=name_some(report.unbounded_tasks),
        score=format_score,
        change=format_change,
        interval=format_interval,
        missing=missing_interval,
        floor=floor_note,
    )
    with atomic_file(path) as file:
        file.write(summary.encode("utf-8", errors="replace"))


def escape_markdown(text: str) -> str:
    """Return ``text`` as one line that Markdown shows as it is, and that turns round nothing after it."""
    escaped = ACTIVE.sub(r"\\\1", " ".join(in_order(text).split()))
    return ADDRESS.sub(lambda match: f"\\{match.group()}", escaped)
