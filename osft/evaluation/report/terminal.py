"""The evaluation as a table for the terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    bound_phrase,
    format_change,
    format_interval,
    format_number,
    format_score,
    name_some,
)
from osft.evaluation.report.points import MAX_SHARE, format_points
from osft.pages import format_count

MARK = "*"
LEGEND = f"{MARK} told apart from chance, corrected for the number of tasks (Holm, 5%)"


def render_table(report: ForgettingReport) -> Table:
    """Return each task before and after with its change and interval, then gain, forgetting and the verdict."""
    marked = any(task.is_significant for task in report.tasks)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=LEGEND if marked else None,
        caption_justify="left",
    )
    table.add_column("task", overflow="fold")
    for name in ("before", "after", "change", "95% interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, title in (("retention", "to be kept"), ("target", "to be learnt")):
        tasks = [task for task in report.tasks if task.kind == kind]
        if tasks:
            table.add_row(title, style="dim")
        for task in tasks:
            table.add_row(*_cells(task))
        for pool in (pool for pool in report.pools if kind == pool.comparison.kind):
            table.add_row(*_cells(pool.comparison, remark="pool" if pool.counts else "not counted"))
        table.add_section()
    if older := [best for best in report.best_tasks if not best.is_of_base]:
        table.add_row("against the best before", style="dim")
        for best in older:
            table.add_row(*_cells(best.comparison, remark=best.version))
        table.add_section()
    if report.probe:
        before, after = format_number(report.probe.base_perplexity), format_number(report.probe.tuned_perplexity)
        table.add_row("on the probe", style="dim")
        table.add_row("  perplexity", before, after)
        table.add_row("  KL, nats a token", "", "", format_number(report.probe.kl))
        table.add_section()
    # No words in the narrow columns: the table fits 80 characters.
    if report.target_gain is None:
        table.add_row("new-task gain not measured")
    else:
        table.add_row(*_share_cells("new-task gain", report.target_gain, signed=True))
    table.add_row(*_share_cells("forgetting", report.forgetting))
    for cells in _bound_rows(report):
        table.add_row(*cells)
    for cells in _chain_rows(report):
        table.add_row(*cells)
    table.add_row("passed" if report.passed else "not passed", style="bold green" if report.passed else "bold red")
    return table


def _bound_rows(report: ForgettingReport) -> Iterator[tuple[str | Text, ...]]:
    if not report.has_bound:
        yield (Text(f"  {bound_phrase(report)}"),)
        return
    yield _bound_cells(report.forgetting_upper)
    if report.unbounded_tasks:
        yield (Text(f"  chance in {name_some(report.unbounded_tasks)} left out"),)


def _chain_rows(report: ForgettingReport) -> Iterator[tuple[str, ...]]:
    """Yield what was lost since the best versions, and since the origin; nothing without a chain."""
    if report.cumulative_forgetting is None or report.cumulative_forgetting_upper is None:
        return
    yield _share_cells("cumulative forgetting", report.cumulative_forgetting)
    if report.has_bound:
        yield _bound_cells(report.cumulative_forgetting_upper)
    if report.origin_forgetting is not None:
        yield _share_cells("  since the origin", report.origin_forgetting)


def _bound_cells(upper: float) -> tuple[str, ...]:
    if upper > MAX_SHARE:
        return ("  no bound (95% confidence)",)
    return _share_cells("  at most (95% confidence)", upper)


def _share_cells(name: str, share: float, *, signed: bool = False) -> tuple[str, ...]:
    points = format_points(share, signed=signed)
    return name, "", "", points.replace("more than ", ">").replace("less than ", "<")


def _cells(task: TaskComparison, *, remark: str = "") -> tuple[Text, ...]:
    cells = (
        f"  {task.task}{f' ({remark})' if remark else ''}",
        format_score(task, task.base),
        format_score(task, task.tuned),
        f"{MARK if task.is_significant else ''}{format_change(task, task.delta)}",
        format_interval(task),
        format_count(task.n),
    )
    # Text and not str: a task's name may hold brackets, which rich would read as markup.
    return tuple(Text(cell) for cell in cells)
