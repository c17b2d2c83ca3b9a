"""How a cell of the accuracy matrix is written and coloured, in the terminal and on the page."""

from osft.evaluation.report.formats import DASH, format_number, format_share
from osft.evaluation.report.points import format_points
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

COLD: Color = (244, 241, 234)
WARM: Color = (109, 193, 158)
"""Backgrounds of the worst and of the best score; dark letters are legible on both."""


def score_text(matrix: AccuracyMatrix, task: MatrixTask, score: float | None) -> str:
    """Return a score as people write it: an accuracy in percent, another metric as it is, a dash for none."""
    if score is None:
        return DASH
    return format_share(score) if matrix.is_accuracy(task) else format_number(score)


def points_text(share: float | None, *, signed: bool = False) -> str:
    """Return a share of a score in points of 100, a dash for none."""
    return DASH if share is None else format_points(share, signed=signed)


def axis_text(matrix: AccuracyMatrix, task: MatrixTask, score: float) -> str:
    """Return the end of an axis, shorter than a score."""
    return f"{100 * score:.0f}%" if matrix.is_accuracy(task) else format_number(score)


def ends(matrix: AccuracyMatrix, task: MatrixTask) -> tuple[float, float]:
    """Return the worst and the best end of a task's scale: 0 and 1 for an accuracy, else what there is since learning.

    A perplexity before learning is so high that nothing else would be seen beside it.
    """
    if matrix.is_accuracy(task):
        return 0.0, 1.0
    column = matrix.column(task)
    first = matrix.versions.index(task.learnt_by) if task.learnt_by in matrix.versions else 0
    known = [score for score in column[first:] if score is not None] or [score for score in column if score is not None]
    low, high = min(known), max(known)
    return (low, high) if task.higher_is_better else (high, low)


def position(matrix: AccuracyMatrix, task: MatrixTask, score: float) -> float:
    """Return where a score lies between both ends, from 0 for the worst to 1; the middle where all are the same."""
    worst, best = ends(matrix, task)
    return min(1.0, max(0.0, (score - worst) / (best - worst))) if best != worst else 0.5


def color_of(matrix: AccuracyMatrix, task: MatrixTask, score: float) -> Color:
    """Return the background of a score."""
    share = position(matrix, task, score)
    if matrix.is_accuracy(task):
        # The square spreads the scores near the best, where most are and where losses should be seen.
        share **= 2
    red, green, blue = (round(cold + share * (warm - cold)) for cold, warm in zip(COLD, WARM, strict=True))
    return red, green, blue
