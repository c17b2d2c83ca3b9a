"""What a model gained on the target tasks, how sure that is, and whether another model gained more.

A gain is the mean over the target tasks, each as a share of its score (:mod:`osft.evaluation.forgetting`). Its interval
joins the tasks' paired 95% intervals: tasks have documents of their own, so the squared distances from value to end add
up, to each side by itself (Zou & Donner, "Construction of confidence limits about effect measures: a general approach",
Statistics in Medicine 27, 2008). Of a single task it is the task's interval.

Two models of a sweep answered the same documents. They are paired with each other, not by way of the base: each
document is its own control, and a difference is told from chance that the intervals of the two gains would hide.

As in the gate, a score that cannot be taken apart into documents counts as measured. Where it is not known which
documents are a task's own, two models cannot be paired; that is said, and not taken for a difference by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from osft.errors import EvaluationError
from osft.evaluation.forgetting import TaskComparison, TaskLabel
from osft.evaluation.measurement import TaskMeasurement, measurement_path
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pairing import check_same_questions, paired_scores
from osft.evaluation.pooling import union_of
from osft.evaluation.report.forgetting_report import ForgettingReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a model answered, and what was judged of it."""

    report: ForgettingReport

    folder: Path
    """With a measurement of each task that the model was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanChange:
    """A mean change over the target tasks, as a share of their scores; positive is better."""

    value: float
    low: float | None = None
    high: float | None = None
    """95% interval; None where there is none to give."""

    is_clear: bool = False
    """Whether the change is told from chance, which without an interval it is only where chance has no part in it."""

    is_paired: bool = True
    """Whether the documents of all tasks could be paired; if not, :attr:`value` is all that is known."""


def target_tasks(report: ForgettingReport) -> list[TaskComparison]:
    """Return the tasks that measure what was to be learnt."""
    return [task for task in report.tasks if task.kind == "target"]


def gain_of(report: ForgettingReport) -> MeanChange | None:
    """Return what a model gained over the base; None if there was no target task."""
    targets = target_tasks(report)
    return mean_change(targets, shares_of=targets) if targets else None


def compare_gains(more: Answers, less: Answers) -> MeanChange | None:
    """Return how much more one model gained than another; None if there was no target task.

    Args:
        more: the model whose gain is the higher one, or is thought to be.
        less: the other one, of the same base.

    Raises:
        EvaluationError: if the two were not asked the same, or a file of answers is damaged.
    """
    targets = target_tasks(more.report)
    if not targets:
        return None
    paired = [_pair(task, more, less) for task in targets]
    seed = int(more.report.settings["seed"])
    changes = [one.compare(seed=seed).comparison for one in paired if one]
    if len(changes) < len(targets):
        value = (more.report.target_gain or 0.0) - (less.report.target_gain or 0.0)
        return MeanChange(value=value, is_paired=False)
    return mean_change(changes, shares_of=targets)


def mean_change(changes: Sequence[TaskComparison], *, shares_of: Sequence[TaskComparison]) -> MeanChange:
    """Return the mean of at least one task's change, with its interval.

    A task without an interval counts as measured. If none has one, and one of too few documents is among them, nothing
    is told from chance.

    Args:
        changes: the tasks.
        shares_of: for each the comparison with the base, of whose score the change becomes a share.
    """
    number = len(changes)
    shares = [_shares(change, scale) for change, scale in zip(changes, shares_of, strict=True)]
    value = math.fsum(value for value, _, _ in shares) / number
    has_interval = any(change.ci_low is not None for change in changes)
    if not has_interval and any(change.has_too_few_documents for change in changes):
        return MeanChange(value=value)
    low = value - math.hypot(*(value - low for value, low, _ in shares)) / number
    high = value + math.hypot(*(high - value for value, _, high in shares)) / number
    is_clear = not low <= 0 <= high
    if not has_interval:
        return MeanChange(value=value, is_clear=is_clear)
    return MeanChange(value=value, low=low, high=high, is_clear=is_clear)


def _shares(change: TaskComparison, scale: TaskComparison) -> tuple[float, float, float]:
    """Return a change and the ends of its interval, the change itself where there is none, as shares of a score."""
    value = scale.as_share(change.delta)
    if change.ci_low is None or change.ci_high is None:
        return value, value, value
    return value, scale.as_share(change.ci_low), scale.as_share(change.ci_high)


def _pair(task: TaskComparison, more: Answers, less: Answers) -> PairedTask | None:
    """Return two models' results on a task, ``less`` in place of the base; None if its documents are not known.

    They are not for a group in a report that was written before these named their tasks.
    """
    if not task.leaves and not measurement_path(more.folder, task.task).is_file():
        return None
    pairs = [_load(leaf, more, less) for leaf in task.leaves or (task.task,)]
    parts = [paired_scores(before, after) for before, after in pairs]
    means = [part for part in parts if part is not None and part.aggregation == "mean"]
    if sum(len(after.documents) for _, after in pairs) != task.n or (task.leaves and len(means) < len(parts)):
        return None
    return PairedTask(
        label=TaskLabel(**{field.name: getattr(task, field.name) for field in fields(TaskLabel)}),
        scores=union_of(means) if task.leaves else parts[0],
        base=_score_of(task.task, less.report),
        tuned=task.tuned,
        num_documents=task.n,
    )


def _load(leaf: str, more: Answers, less: Answers) -> tuple[TaskMeasurement, TaskMeasurement]:
    """Return what the two models answered, ``less`` first.

    Raises:
        EvaluationError: if they were not asked the same, or a file is missing or damaged.
    """
    before, after = (TaskMeasurement.load(measurement_path(one.folder, leaf)) for one in (less, more))
    check_same_questions(before, after)
    return before, after


def _score_of(task: str, report: ForgettingReport) -> float:
    """Return the tuned model's score of a target task.

    Raises:
        EvaluationError: if the model was not asked it.
    """
    for one in target_tasks(report):
        if one.task == task:
            return one.tuned
    raise EvaluationError(f"{report.tuned} was not asked '{task}', as another model of the sweep was. Retry the sweep.")
