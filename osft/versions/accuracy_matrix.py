"""What every version of a model scores on every task that was ever asked: the accuracy matrix of continual learning.

``R[i, j]`` is the score of version i on task j, a task being a retention task, the new data's own tasks, or the
held-out rows of an earlier version. Definitions are those of :mod:`osft.evaluation.forgetting`, over a chain of
versions instead of two models:

- average accuracy: the mean of the last row over the tasks scored from 0 to 1 (Lopez-Paz & Ranzato 2017,
  arXiv:1706.08840);
- backward transfer: the mean of ``R[T, j] - R[j, j]`` over the tasks that the last version T did not learn itself
  (the same). A task that each version is trained on counts as learnt by the first of them, or it could never be
  forgotten. A task that no version learnt was there before: the first score known of it stands for ``R[j, j]``;
- forgetting of a task: the best score of an earlier version less the last one's (Chaudhry et al. 2018,
  arXiv:1801.10112), 0 if it is no loss, so that a gain does not make up for it.

A task is read as a share where all of its scores lie from -1 to 1 and higher is better. Else, and where lower is
better (perplexity), a change is taken relative to the score that it is measured from. What was not measured is
nowhere counted, least of all as 0. Scores on other questions, of a changed task or with another limit, are not
compared, as they are not by the evaluation's gate: each set of questions has a column.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.evaluation.statistics import scale_of
from osft.versions.lineage import Lineage, TaskScore

Column = tuple[str, str, str]
"""Task, metric and the hash of its questions: scores compare where all three are the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixTask:
    """A column of the matrix."""

    name: str
    metric: str
    higher_is_better: bool = True

    learnt_by: str | None = None
    """The first version that was trained on it; None for what was there before."""

    asked_until: str | None = None
    """The last version that was asked these questions, where later ones were asked others under the same name."""

    @property
    def label(self) -> str:
        """Its name for people, that of no other column."""
        return f"{self.name} (until {self.asked_until})" if self.asked_until else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFigures:
    """What became of one task."""

    task: str

    best: float | None
    """Best score of an earlier version; None if no earlier version was asked."""

    best_version: str | None

    last: float | None
    """Score of the last version; None if it was not asked."""

    forgetting: float | None
    """Share lost against :attr:`best`, at least 0; None if either score is missing or the last version learnt it."""

    transfer: float | None
    """Signed share of change since it was learnt, or first known; None as for :attr:`forgetting`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixFigures:
    """The figures of a whole matrix; each is None where there is nothing to take it from."""

    average_accuracy: float | None
    accuracy_tasks: int
    """Over how many tasks :attr:`average_accuracy` is the mean."""

    backward_transfer: float | None
    forgetting: float | None
    """Mean of the tasks' forgetting."""

    tasks: tuple[TaskFigures, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyMatrix:
    """Scores of versions on tasks.

    Raises:
        ValueError: if the rows are not one per version, each with one cell per task.
    """

    versions: tuple[str, ...]
    """Rows, oldest first."""

    tasks: tuple[MatrixTask, ...]
    """Columns, in the order in which they were first asked."""

    scores: tuple[tuple[float | None, ...], ...]
    """``[versions][tasks]``; None was not measured."""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.scores}
        if len(self.scores) != len(self.versions) or widths - {len(self.tasks)}:
            raise ValueError(
                f"the matrix has {len(self.scores)} rows of {sorted(widths)} cells for {len(self.versions)} versions "
                f"and {len(self.tasks)} tasks. Give one row per version, one cell per task."
            )

    def column(self, task: MatrixTask) -> tuple[float | None, ...]:
        """Return the scores on one task, by version."""
        place = self.tasks.index(task)
        return tuple(row[place] for row in self.scores)

    def is_relative(self, task: MatrixTask) -> bool:
        """Whether changes of the task are taken relative to a score: see the module's docstring."""
        return not task.higher_is_better or any(abs(score) > 1 for score in self.column(task) if score is not None)

    def is_accuracy(self, task: MatrixTask) -> bool:
        """Whether the task counts in the average accuracy: it is scored from 0 to 1, higher is better."""
        known = [score for score in self.column(task) if score is not None]
        return task.higher_is_better and all(0 <= score <= 1 for score in known)

    def figures(self) -> MatrixFigures:
        """Return what the last version is worth, and what the chain lost on its way."""
        if not self.versions:
            return MatrixFigures(
                average_accuracy=None, accuracy_tasks=0, backward_transfer=None, forgetting=None, tasks=()
            )
        figures = tuple(self._figures_of(task) for task in self.tasks)
        last = zip(self.tasks, self.scores[-1], strict=True)
        accuracies = [score for task, score in last if score is not None and self.is_accuracy(task)]
        return MatrixFigures(
            average_accuracy=_mean(accuracies),
            accuracy_tasks=len(accuracies),
            backward_transfer=_mean(one.transfer for one in figures),
            forgetting=_mean(one.forgetting for one in figures),
            tasks=figures,
        )

    def _figures_of(self, task: MatrixTask) -> TaskFigures:
        column = dict(zip(self.versions, self.column(task), strict=True))
        last_version, last = column.popitem()
        earlier = {version: score for version, score in column.items() if score is not None}
        best_version = _best_version(task, earlier)
        best = None if best_version is None else earlier[best_version]
        forgetting = transfer = None
        if last is not None and last_version != task.learnt_by:
            if best is not None:
                forgetting = max(0.0, -self._change_share(task, best, last))
            reference = self._reference(task, earlier)
            if reference is not None:
                transfer = self._change_share(task, reference, last)
        return TaskFigures(
            task=task.name, best=best, best_version=best_version, last=last, forgetting=forgetting, transfer=transfer
        )

    def _reference(self, task: MatrixTask, scores: Mapping[str, float]) -> float | None:
        """Return ``R[j, j]``: the first known score since the task was learnt; if it never was, the first of all."""
        first = self.versions.index(task.learnt_by) if task.learnt_by in self.versions else 0
        return next((scores[version] for version in self.versions[first:] if version in scores), None)

    def _change_share(self, task: MatrixTask, before: float, after: float) -> float:
        """Return the signed change as a share of the score; positive is better."""
        change = (after - before if task.higher_is_better else before - after) + 0.0
        return change / scale_of(before, after) if self.is_relative(task) else change


def matrix_of(chain: Sequence[Lineage]) -> AccuracyMatrix:
    """Return the matrix of a chain of versions.

    A version's score is what its own evaluation measured. Where that did not ask these questions, the score that the
    version after it was compared with stands in; so the origin has a row even if nothing but its successor's
    evaluation is known of it.

    Args:
        chain: lineages, oldest first, as :func:`osft.versions.lineage.chain_of` gives them.
    """
    columns = _columns(chain)
    cells: dict[str, dict[Column, float]] = {lineage.version: {} for lineage in chain}
    for lineage in chain:
        cells[lineage.version] |= {_column_of(score): score.after for score in lineage.scores}
    for lineage in chain:
        before = cells.setdefault(lineage.parent or ORIGIN_VERSION, {})
        for score in lineage.scores:
            if score.before is not None:
                before.setdefault(_column_of(score), score.before)
    versions = _row_names([lineage.version for lineage in chain], cells)
    return AccuracyMatrix(
        versions=versions,
        tasks=tuple(columns.values()),
        scores=tuple(tuple(cells[version].get(column) for column in columns) for version in versions),
    )


def _column_of(score: TaskScore) -> Column:
    return score.task, score.metric, score.questions


def _columns(chain: Sequence[Lineage]) -> dict[Column, MatrixTask]:
    """Return the columns, in the order in which they were first asked."""
    learnt_by: dict[str, str] = {}
    last_column: dict[str, Column] = {}
    asked: dict[Column, tuple[TaskScore, str]] = {}
    for lineage in chain:
        for score in lineage.scores:
            last_column[score.task] = _column_of(score)
            asked[_column_of(score)] = score, lineage.version
            if score.kind == "target" and lineage.version != ORIGIN_VERSION:
                learnt_by.setdefault(score.task, lineage.version)
    return {
        column: MatrixTask(
            name=score.task,
            metric=score.metric,
            higher_is_better=score.higher_is_better,
            learnt_by=learnt_by.get(score.task),
            asked_until=version if last_column[score.task] != column else None,
        )
        for column, (score, version) in asked.items()
    }


def _row_names(chain: Sequence[str], cells: Mapping[str, object]) -> tuple[str, ...]:
    """Return the chain's versions, behind the origin if something is known of it."""
    begins_with_origin = ORIGIN_VERSION in chain or not cells.get(ORIGIN_VERSION)
    return tuple(chain) if begins_with_origin else (ORIGIN_VERSION, *chain)


def _best_version(task: MatrixTask, scores: Mapping[str, float]) -> str | None:
    """Return the version with the best score, the earliest of equal ones."""
    if not scores:
        return None
    sign = 1 if task.higher_is_better else -1
    return max(scores, key=lambda version: sign * scores[version])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
