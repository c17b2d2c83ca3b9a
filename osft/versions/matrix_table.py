"""The accuracy matrix in the terminal: a coloured table with what became of each task, and the figures below it.

It is drawn with a row a task, since versions have the shorter names; the page has it as the papers do.
"""

from collections.abc import Iterator

from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from osft.evaluation.report.formats import format_share
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask
from osft.versions.score_text import color_of, points_text, score_text

NAME_CHARACTERS = 24
"""Room for a task's name beside the matrix, at least; a longer one is folded."""

CELL_CHARACTERS = 7
"""A marked ``100.0%``."""

CELL_SPACE = 2
"""Around each cell."""

FIGURE_CHARACTERS = 14
"""Of the column with each task's forgetting, and the space at both ends."""

LEARNT = "\N{BLACK SQUARE}"
LEGEND = f"{LEARNT} learnt by this version. forgetting: points below the best earlier version."


def render_matrix(matrix: AccuracyMatrix, width: int) -> Table:
    """Return the matrix as a table.

    Args:
        matrix: at least one version.
        width: characters of a line; versions that do not fit beside each other are left out, oldest first, and a line
            below says so.
    """
    names = max((len(_task_name(task)) for task in matrix.tasks), default=0)
    cell = CELL_SPACE + max(CELL_CHARACTERS, *map(len, matrix.versions))
    room = max(1, (width - min(names, NAME_CHARACTERS) - FIGURE_CHARACTERS) // cell)
    shown = matrix.versions[-room:]
    left_out = len(matrix.versions) - len(shown)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left", caption=LEGEND)
    if left_out:
        table.caption = f"{left_out} older version{'' if left_out == 1 else 's'} left out; the page has all.\n{LEGEND}"
    spare = width - len(shown) * cell - FIGURE_CHARACTERS
    table.add_column("task", overflow="fold", max_width=max(NAME_CHARACTERS, spare))
    for version in shown:
        table.add_column(version, justify="right", no_wrap=True)
    table.add_column("forgetting", justify="right", no_wrap=True)
    for task, figures in zip(matrix.tasks, matrix.figures().tasks, strict=True):
        scores = matrix.column(task)[left_out:]
        cells = [_cell(matrix, task, version, score) for version, score in zip(shown, scores, strict=True)]
        table.add_row(Text(_task_name(task)), *cells, Text(points_text(figures.forgetting)))
    return table


def figure_lines(matrix: AccuracyMatrix) -> Iterator[str]:
    """Yield the figures of the matrix, a line each."""
    figures, last = matrix.figures(), matrix.versions[-1]
    if figures.average_accuracy is not None:
        number = f"{figures.accuracy_tasks} task{'' if figures.accuracy_tasks == 1 else 's'}"
        yield f"average accuracy of {last}: {format_share(figures.average_accuracy)} over {number}"
    yield f"backward transfer: {points_text(figures.backward_transfer, signed=True)} points"
    yield f"forgetting: {points_text(figures.forgetting)} points, the mean of the tasks"
    unasked = [task for task, one in zip(matrix.tasks, figures.tasks, strict=True) if one.last is None]
    if missing := [task.name for task in unasked if not task.asked_until]:
        yield f"not asked of {last}, and in none of these figures: {', '.join(missing)}"
    if changed := [task.label for task in unasked if task.asked_until]:
        yield f"other questions since then, and in none of these figures: {', '.join(changed)}"


def _task_name(task: MatrixTask) -> str:
    return task.label if task.higher_is_better else f"{task.label} ({task.metric}, lower is better)"


def _cell(matrix: AccuracyMatrix, task: MatrixTask, version: str, score: float | None) -> Text:
    text = score_text(matrix, task, score)
    if score is None:
        return Text(text, style="dim")
    mark = LEARNT if version == task.learnt_by else " "
    red, green, blue = color_of(matrix, task, score)
    return Text(f"{mark}{text}", style=Style(color="black", bgcolor=f"rgb({red},{green},{blue})"))
