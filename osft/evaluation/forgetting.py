"""What a model lost and gained over several tasks, and how sure that is.

For every task: the score before and after, the change (positive is better, also where lower scores are), a paired
95% interval, a test, and an upper bound of the loss (:mod:`osft.evaluation.statistics` has the methods). A score that
is no function of sums over documents (corpus BLEU) has the change alone.

``forgetting`` is the mean over the retention tasks of ``max(0, loss)``. It follows Chaudhry et al. 2018
("Riemannian Walk for Incremental Learning", arXiv:1801.10112), whose forgetting of a task is the best
earlier score less the present one; the one earlier model here is the base (:mod:`osft.evaluation.cumulative` looks at
all of them). Theirs lets a gain on one task make up for a loss on another, ours does not: a gate must see the loss.

Backward transfer and average accuracy are those of Lopez-Paz & Ranzato 2017 ("Gradient Episodic Memory",
arXiv:1706.08840). With ``R[i, j]`` the score on task j after learning task i, ``ACC = mean_j R[T, j]`` and
``BWT = mean_{i<T} (R[T, i] - R[i, i])``. Two models are known here, before and after the newest task: the base's score
stands for every ``R[i, i]``, so what was lost in between earlier trainings is not in it. Retention tasks are those
before T, target tasks are T.

Tasks are averaged as shares of their score, or one perplexity would outweigh all accuracies. A score where higher is
better is taken as it is (accuracy, F1), unless a model's value lies beyond -1 or 1, where it must be on another scale
(0 to 100). That one, and every score where lower is better, is taken relative to the base's: a perplexity from 10.0 to
10.5 is a loss of 0.05, and so are bits per byte from 0.50 to 0.525.

What earlier versions held out counts in every mean as one task over all its documents (:mod:`osft.evaluation.pooling`),
or a chain's many small sets would come to outweigh the tasks that the user named.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from osft.errors import EvaluationError
from osft.evaluation.statistics import (
    CONFIDENCE,
    PairedScores,
    Scores,
    holm,
    loss_upper_bound,
    paired_uncertainty,
    scale_of,
)

Kind = Literal["retention", "target"]

MIN_DOCUMENTS = 2
"""Of a score without an interval: a single document may move by any amount."""

MIN_POOLED_DOCUMENTS = 60
"""Of a pool that counts. Of 60 right-or-wrong documents, none lost, a loss of 4.9 points cannot be ruled out (95%); 59
are the fewest that alone pass the default limit of 5. Nobody chooses how many rows a small increment holds out, so
fewer must not keep back a model that lost nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondaryMetric:
    """A metric that is shown beside the one that counts."""

    metric: str
    base: float
    tuned: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLabel:
    """What a task is called and how its score is read."""

    task: str
    asked_as: str = ""
    """The user's word for the task; empty is the task's own name."""

    kind: Kind
    metric: str
    higher_is_better: bool = True

    secondary: tuple[SecondaryMetric, ...] = ()
    """Other metrics of the task, for information."""

    leaves: tuple[str, ...] = ()
    """Of a group that is scored as one over all its documents, the tasks that have these; empty for a task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison(TaskLabel):
    """One task before and after training: a line of ``forgetting.json``."""

    base: float
    tuned: float

    delta: float
    """Change in the metric's own unit; positive is better, also for a metric where lower is better."""

    ci_low: float | None = None
    ci_high: float | None = None
    """Paired 95% interval of :attr:`delta`; None where the documents say nothing of their spread."""

    loss_upper: float | None = None
    """One-sided 95% upper bound of the share of the score that was lost, at least 0; None without an interval.
    It errs to the safe side where documents are few, so it may then lie a little beyond :attr:`ci_low`."""

    p_value: float | None = None
    """Of McNemar's exact test (right-or-wrong scores) or a permutation test; None without an interval."""

    p_adjusted: float | None = None
    """:attr:`p_value` adjusted for the number of tasks (Holm); None without one, or before tasks are joined."""

    n: int
    """Number of documents."""

    lost: int | None = None
    gained: int | None = None
    """Documents that went from right to wrong and from wrong to right; None where scores are not right or wrong."""

    @property
    def is_significant(self) -> bool:
        """Whether the change is told apart from chance, allowing for the number of tasks."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE

    @property
    def is_relative(self) -> bool:
        """Whether the task's share of forgetting is taken relative to the base's score.

        A perplexity is so even if its task calls higher better by mistake: it is never below 1.
        """
        return not self.higher_is_better or max(abs(self.base), abs(self.tuned)) > 1

    @property
    def change_share(self) -> float:
        """The change as a share of the score: what is averaged over tasks.

        Where it is relative and the base's score is 0, it is a share of the tuned model's: 1 or -1, everything was
        gained or lost.
        """
        return self.as_share(self.delta)

    @property
    def has_too_few_documents(self) -> bool:
        """Whether nothing can be said of the task, and not for the kind of its score."""
        return self.loss_upper is None and self.n < MIN_DOCUMENTS

    @property
    def has_nothing_to_lose(self) -> bool:
        """Whether the base answers nothing right, so that no forgetting can show."""
        return self.kind == "retention" and self.higher_is_better and self.base == 0 and self.tuned >= 0

    def as_share(self, change: float) -> float:
        """Return a change in the metric's own unit as a share of the score."""
        return change / scale_of(self.base, self.tuned) if self.is_relative else change


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedTask:
    """A comparison with what is needed to join it with others."""

    comparison: TaskComparison
    loss_draws: Scores | None
    """``[resamples]``: shares that may have been lost; None where the comparison has no interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Several tasks that count as one, over all their documents."""

    tasks: tuple[str, ...]
    """Their names; each is also a comparison of its own, which is shown and counts in no mean."""

    comparison: TaskComparison

    @property
    def counts(self) -> bool:
        """Whether the pool counts as a task; of too few documents it is shown, and nothing more."""
        return self.comparison.n >= MIN_POOLED_DOCUMENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedPool:
    """A pool with what is needed to join it with tasks."""

    pool: Pool
    loss_draws: Scores | None
    """As :attr:`ComparedTask.loss_draws`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanLoss:
    """What was lost over several tasks; the gains of others do not make up for it."""

    value: float
    """Mean of ``max(0, share lost)``."""

    upper: float
    """One-sided 95% upper confidence bound of it, at least :attr:`value`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an evaluation found, over all tasks."""

    tasks: tuple[TaskComparison, ...]

    pools: tuple[Pool, ...] = ()
    """Retention tasks that count as one in all means, and not by themselves."""

    forgetting: float
    """Mean over the retention tasks of ``max(0, share lost)``; 0 is none."""

    forgetting_upper: float
    """One-sided 95% upper confidence bound of :attr:`forgetting`, given that :attr:`unbounded_tasks` are exact.
    No bound at all unless :func:`has_bound`."""

    unbounded_tasks: tuple[str, ...]
    """Retention tasks whose score cannot be taken apart into documents: they count in the bound with their value."""

    too_few_documents: tuple[str, ...] = ()
    """Retention tasks of one document that says nothing: they count as the others do, but the gate does not pass."""

    target_gain: float | None
    """Mean over the target tasks of the share gained; None if there is no target: 0 would be a made-up number."""

    backward_transfer: float
    """Mean over the retention tasks of the signed change, as a share of the score; negative is lost."""

    average_accuracy_base: float | None
    average_accuracy_tuned: float | None
    """Mean score of all tasks where scores lie in 0 to 1 and higher is better; None if there are none."""


def compare_scores(label: TaskLabel, scores: PairedScores, *, seed: int) -> ComparedTask:
    """Return what one task's documents say, with the draws that :func:`join` needs.

    Args:
        label: names the task.
        scores: its documents; whether higher is better is taken from ``label``.
        seed: of the draws, which also depend on the task's name: tasks are independent of each other, and of which
            others there are.

    Raises:
        EvaluationError: if there is no document, the lengths differ, or a score is not finite.
    """
    _check_scores(label.task, scores.base, scores.tuned)
    scores = replace(scores, higher_is_better=label.higher_is_better)
    total = scores.weights.sum()
    comparison = compare_values(
        label,
        base=float(scores.value(scores.base.sum() / total)),
        tuned=float(scores.value(scores.tuned.sum() / total)),
        num_documents=len(scores.base),
    )
    loss = -comparison.change_share + 0.0
    seeds = (seed, zlib.crc32(label.task.encode()))
    found = paired_uncertainty(scores, relative=comparison.is_relative, seeds=seeds)
    if found is None:
        return ComparedTask(comparison=comparison, loss_draws=None)
    improvements = scores.improvements if scores.is_binary else None
    comparison = replace(
        comparison,
        ci_low=found.interval.low,
        ci_high=found.interval.high,
        loss_upper=max(loss, loss_upper_bound(found.loss_draws)),
        p_value=found.p_value,
        lost=None if improvements is None else int((improvements < 0).sum()),
        gained=None if improvements is None else int((improvements > 0).sum()),
    )
    return ComparedTask(comparison=comparison, loss_draws=found.loss_draws)


def compare_values(label: TaskLabel, *, base: float, tuned: float, num_documents: int) -> TaskComparison:
    """Return the change of a score that cannot be taken apart into documents: there is no interval to give."""
    return TaskComparison(
        **{field.name: getattr(label, field.name) for field in fields(TaskLabel)},
        base=base,
        tuned=tuned,
        delta=(tuned - base if label.higher_is_better else base - tuned) + 0.0,
        n=num_documents,
    )


def join(compared: Sequence[ComparedTask], pools: Sequence[ComparedPool] = ()) -> Outcome:
    """Return the measures over all tasks, with each task's p-value adjusted for their number.

    Args:
        compared: every task.
        pools: those of them that count as one; they have no part in the adjustment, for their documents are in it.

    Raises:
        EvaluationError: if there is no retention task.
    """
    counted = joined(compared, pools)
    retention = [one for one in counted if one.comparison.kind == "retention"]
    if not retention:
        raise EvaluationError("there is no retention task, so forgetting cannot be measured. Name at least one.")
    changes = [one.comparison.change_share for one in retention]
    gains = [one.comparison.change_share for one in counted if one.comparison.kind == "target"]
    unbounded = [one.comparison for one in retention if one.loss_draws is None]
    forgetting = mean_loss(retention)
    accuracies = [one.comparison for one in counted if _is_accuracy(one.comparison)]
    return Outcome(
        tasks=_adjusted([one.comparison for one in compared]),
        pools=tuple(one.pool for one in pools),
        forgetting=forgetting.value,
        forgetting_upper=forgetting.upper,
        unbounded_tasks=tuple(one.task for one in unbounded if not one.has_too_few_documents),
        too_few_documents=tuple(one.task for one in unbounded if one.has_too_few_documents),
        target_gain=_mean(gains) if gains else None,
        backward_transfer=_mean(changes),
        average_accuracy_base=_mean([one.base for one in accuracies]) if accuracies else None,
        average_accuracy_tuned=_mean([one.tuned for one in accuracies]) if accuracies else None,
    )


def joined(compared: Sequence[ComparedTask], pools: Sequence[ComparedPool]) -> list[ComparedTask]:
    """Return what counts, as :func:`counted_tasks` does, with the draws."""
    within = {name for one in pools for name in one.pool.tasks}
    alone = [one for one in compared if one.comparison.task not in within]
    together = [
        ComparedTask(comparison=one.pool.comparison, loss_draws=one.loss_draws) for one in pools if one.pool.counts
    ]
    return alone + together


def mean_loss(compared: Sequence[ComparedTask]) -> MeanLoss:
    """Return what at least one task lost on average, and its bound.

    The bound is the 95% quantile of the mean of ``max(0, loss)`` over draws of all tasks at once. Both what each task's
    draws add for the documents that were not seen and cutting at 0 raise it, never lower it.
    """
    value = _mean([max(0.0, -one.comparison.change_share) for one in compared])
    return MeanLoss(value=value, upper=max(value, loss_upper_bound(_mean_loss_draws(compared))))


def counted_tasks(tasks: Sequence[TaskComparison], pools: Sequence[Pool]) -> list[TaskComparison]:
    """Return what counts: the tasks that are in no pool, then each pool that has documents enough."""
    within = {name for pool in pools for name in pool.tasks}
    return [task for task in tasks if task.task not in within] + [pool.comparison for pool in pools if pool.counts]


def has_bound(tasks: Sequence[TaskComparison], pools: Sequence[Pool] = ()) -> bool:
    """Return whether a bound of forgetting means something: for some retention task, and for none it cannot be had.

    Args:
        tasks: every task.
        pools: those of them that count as one.
    """
    retention = [task for task in counted_tasks(tasks, pools) if task.kind == "retention"]
    too_few = any(task.has_too_few_documents for task in retention)
    return not too_few and any(task.loss_upper is not None for task in retention)


def _adjusted(comparisons: Sequence[TaskComparison]) -> tuple[TaskComparison, ...]:
    adjusted = iter(holm([one.p_value for one in comparisons if one.p_value is not None]))
    return tuple(one if one.p_value is None else replace(one, p_adjusted=next(adjusted)) for one in comparisons)


def _mean_loss_draws(compared: Sequence[ComparedTask]) -> Scores:
    """Return ``[resamples]`` mean losses, or one number if no task has draws."""
    losses = [-one.comparison.change_share if one.loss_draws is None else one.loss_draws for one in compared]
    total = np.zeros(1)
    for loss in losses:
        total = total + np.maximum(loss, 0.0)
    return total / len(losses)


def _is_accuracy(task: TaskComparison) -> bool:
    return task.higher_is_better and min(task.base, task.tuned) >= 0 and max(task.base, task.tuned) <= 1


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _check_scores(task: str, base_scores: Scores, tuned_scores: Scores) -> None:
    if len(base_scores) == 0 or base_scores.shape != tuned_scores.shape:
        raise EvaluationError(
            f"task '{task}': {len(base_scores)} documents of the base model and {len(tuned_scores)} of the tuned one. "
            "Both must be scored on the same documents, at least one."
        )
    for label, scores in (("base", base_scores), ("tuned", tuned_scores)):
        if not np.isfinite(scores).all():
            document = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise EvaluationError(
                f"task '{task}', document {document}: the {label} model's score is {scores[document]}. "
                "Its weights are broken, or the metric is not defined for this document."
            )
