"""The evaluation as a table for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report import ForgettingReport, format_change, format_interval, format_points, format_score


def render_table(report: ForgettingReport) -> Table:
    """Return each task before and after with its change and interval, then gain, forgetting and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", overflow="fold")
    for name in ("before", "after", "change", "95% interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, title in (("retention", "to be kept"), ("target", "to be learnt")):
        tasks = [task for task in report.tasks if task.kind == kind]
        if tasks:
            table.add_row(title, style="dim")
        for task in tasks:
            table.add_row(*_cells(task))
        table.add_section()
    gain = "not measured" if report.target_gain is None else format_points(report.target_gain, signed=True)
    table.add_row("new-task gain", "", "", gain)
    table.add_row("forgetting", "", "", format_points(report.forgetting))
    table.add_row("passed" if report.passed else "not passed", style="bold green" if report.passed else "bold red")
    return table


def _cells(task: TaskComparison) -> tuple[Text, ...]:
    cells = (
        f"  {task.task}",
        format_score(task, task.base),
        format_score(task, task.tuned),
        format_change(task, task.delta),
        format_interval(task),
        f"{task.n:,}",
    )
    # Text and not str: a task's name may hold brackets, which rich would read as markup.
    return tuple(Text(cell) for cell in cells)
