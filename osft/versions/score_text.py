"""How a cell of the accuracy matrix is written and how strong its colour is, in the terminal and on the page."""

from osft.evaluation.report.formats import DASH, format_number, format_share
from osft.evaluation.report.points import format_points
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask


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


def strength(matrix: AccuracyMatrix, task: MatrixTask, score: float) -> float:
    """Return from 0 to 1 how strong the colour of a score is.

    An accuracy is taken as it is, another metric against the best in its column. The square of it spreads the scores
    near the best, where most are and where losses should be seen.
    """
    if matrix.is_accuracy(task):
        return score**2
    known = [one for one in matrix.column(task) if one is not None]
    part, whole = (score, max(known)) if task.higher_is_better else (min(known), score)
    return min(1.0, max(0.0, part / whole)) ** 2 if whole else 0.0
