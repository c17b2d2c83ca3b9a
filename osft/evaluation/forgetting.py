"""What a model lost and gained: paired statistics over documents, and the gate.

Both models answer the same documents, so each document is its own control. For every task: the mean score
before and after, the change (positive is better, also where lower scores are), and a paired 95% interval:

- right-or-wrong scores: Bonett & Price's adjusted Wald interval for paired proportions ("Adjusted Wald
  Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", J. Educational and
  Behavioral Statistics 37(4), 2012; recommended by Fagerland, Lydersen & Laake, Statistics in Medicine 33,
  2014). It stays open when no document changed: nine unchanged documents do not prove that nothing changes.
- other scores: the bias-corrected, accelerated bootstrap over documents (``scipy.stats.bootstrap``).
- a score that is no mean over documents (corpus BLEU, perplexity): the change alone, without an interval.

``forgetting`` is the mean over the retention tasks of ``max(0, loss)``, ``target_gain`` the mean over the
target tasks of the gain. Tasks are averaged as shares of their score: as it is where scores lie within -1 and 1
(accuracy, F1), relative to the base's score elsewhere (a perplexity from 10.0 to 10.5 is a loss of 0.05);
otherwise one perplexity would outweigh all accuracies.

Pure functions over arrays; running the models is the harness's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from osft.errors import EvaluationError

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 9_999
BOOTSTRAP_BATCH_NUMBERS = 4_000_000
"""Most numbers (documents times resamples) drawn at once: 32 MB."""

ROUND_OFF = 1e-9
"""Gate limits are met up to this: 0.95 - 0.90 is 0.0499999... or 0.0500000...1, depending on the order."""

Scores = NDArray[np.float64]
Kind = Literal["retention", "target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A confidence interval of a change."""

    low: float
    high: float


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
    kind: Kind
    metric: str
    higher_is_better: bool = True

    secondary: tuple[SecondaryMetric, ...] = ()
    """Other metrics of the task, for information."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison(TaskLabel):
    """One task before and after training: a line of ``forgetting.json``."""

    base: float
    tuned: float

    delta: float
    """Change in the metric's own unit; positive is better, also for a metric where lower is better."""

    ci_low: float | None
    ci_high: float | None
    """Paired 95% interval of :attr:`delta`; None for a score that is no mean over documents, or one document."""

    n: int
    """Number of documents."""

    lost: int | None = None
    gained: int | None = None
    """Documents that went from right to wrong and from wrong to right; None where scores are not right or wrong."""

    @property
    def is_relative(self) -> bool:
        """Whether the task's share of forgetting is taken relative to the base's score."""
        return max(abs(self.base), abs(self.tuned)) > 1

    @property
    def change_share(self) -> float:
        """The change as a share of the score: what is averaged over tasks.

        Raises:
            EvaluationError: if it is relative to a base score of 0.
        """
        if not self.is_relative:
            return self.delta
        if self.base == 0:
            raise EvaluationError(
                f"task '{self.task}': {self.metric} is 0 for the base model, so a relative change has no meaning. "
                "Choose another metric for the task."
            )
        return self.delta / abs(self.base)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The gate's answer."""

    forgetting: float
    """Mean over retention tasks of the share of the score that was lost; 0 is none."""

    target_gain: float | None
    """Mean over target tasks of the share gained; None if there is no target: 0 would be a made-up number."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence for each limit, met or not."""


def compare_documents(label: TaskLabel, base_scores: Scores, tuned_scores: Scores, *, seed: int) -> TaskComparison:
    """Return means, change, interval and flips from paired scores of documents.

    Args:
        label: names the task.
        base_scores: ``[documents]``, finite.
        tuned_scores: ``[documents]``, of the same documents in the same order.
        seed: of the bootstrap.

    Raises:
        EvaluationError: if there is no document, the lengths differ, or a score is not finite.
    """
    _check_scores(label.task, base_scores, tuned_scores)
    improvements = _sign(label) * (tuned_scores - base_scores)
    lost, gained = int((improvements < 0).sum()), int((improvements > 0).sum())
    is_binary = bool(np.isin(base_scores, (0, 1)).all() and np.isin(tuned_scores, (0, 1)).all())
    interval: Interval | None
    if is_binary:
        interval = paired_proportion_interval(lost=lost, gained=gained, num_documents=len(improvements))
    else:
        interval = bootstrap_interval(improvements, seed=seed)
    return TaskComparison(
        **_fields(label),
        base=float(base_scores.mean()),
        tuned=float(tuned_scores.mean()),
        delta=float(improvements.mean()) + 0.0,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        n=len(improvements),
        lost=lost if is_binary else None,
        gained=gained if is_binary else None,
    )


def compare_values(label: TaskLabel, *, base: float, tuned: float, num_documents: int) -> TaskComparison:
    """Return the change of a score that is no mean over documents: there is no interval to give."""
    return TaskComparison(
        **_fields(label),
        base=base,
        tuned=tuned,
        delta=_sign(label) * (tuned - base) + 0.0,
        ci_low=None,
        ci_high=None,
        n=num_documents,
    )


def paired_proportion_interval(*, lost: int, gained: int, num_documents: int) -> Interval:
    """Return Bonett & Price's 95% interval of ``(gained - lost) / n`` for paired right-or-wrong scores.

    With ``p = (gained + 1) / (n + 2)`` and ``q = (lost + 1) / (n + 2)`` it is
    ``p - q +- z sqrt((p + q - (p - q)^2) / (n + 2))`` (their equation for the adjusted Wald interval), cut to -1 and 1.

    Args:
        lost: documents that only the base model answers rightly.
        gained: documents that only the tuned model answers rightly.
        num_documents: all documents, at least 1.
    """
    p, q = (gained + 1) / (num_documents + 2), (lost + 1) / (num_documents + 2)
    half_width = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((p + q - (p - q) ** 2) / (num_documents + 2))
    return Interval(low=max(-1.0, float(p - q - half_width)), high=min(1.0, float(p - q + half_width)))


def bootstrap_interval(differences: Scores, *, seed: int) -> Interval | None:
    """Return the 95% bootstrap interval of the mean of paired differences.

    Args:
        differences: ``[documents]``.
        seed: of the resampling.

    Returns:
        None for one document, which says nothing about its spread; the value itself where all are equal.
    """
    if len(differences) < 2:
        return None
    if np.ptp(differences) <= ROUND_OFF * max(1.0, float(np.abs(differences).max())):
        return Interval(low=float(differences.mean()), high=float(differences.mean()))
    result = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=max(1, BOOTSTRAP_BATCH_NUMBERS // len(differences)),
        method="BCa",
        random_state=np.random.default_rng(seed),
    )
    return Interval(low=float(result.confidence_interval.low), high=float(result.confidence_interval.high))


def mean_forgetting(comparisons: Sequence[TaskComparison]) -> float:
    """Return the mean over the retention tasks of ``max(0, share lost)``.

    Raises:
        EvaluationError: if there is no retention task.
    """
    losses = [max(0.0, -one.change_share) for one in comparisons if one.kind == "retention"]
    if not losses:
        raise EvaluationError("there is no retention task, so forgetting cannot be measured. Name at least one.")
    return math.fsum(losses) / len(losses)


def mean_target_gain(comparisons: Sequence[TaskComparison]) -> float | None:
    """Return the mean over the target tasks of the share gained, None if there is no target task."""
    gains = [one.change_share for one in comparisons if one.kind == "target"]
    return math.fsum(gains) / len(gains) if gains else None


def judge(comparisons: Sequence[TaskComparison], *, max_forgetting: float, min_target_gain: float) -> Verdict:
    """Return whether the tuned model may replace the base, and why.

    Args:
        comparisons: every task.
        max_forgetting: largest forgetting that passes, as a share of the score.
        min_target_gain: smallest gain that passes; not asked for without a target task.
    """
    forgetting, gain = mean_forgetting(comparisons), mean_target_gain(comparisons)
    keeps = forgetting <= max_forgetting + ROUND_OFF
    learns = gain is None or gain >= min_target_gain - ROUND_OFF
    relation = "within" if keeps else "above"
    reasons = [f"Forgetting is {_points(forgetting)}, {relation} the limit of {_points(max_forgetting)}."]
    if gain is None:
        reasons.append("There is no target task, so the gain on the new data was not measured.")
    else:
        relation = "no less than" if learns else "below"
        reasons.append(
            f"The gain on the new data is {_points(gain)}, {relation} the {_points(min_target_gain)} asked for."
        )
    return Verdict(forgetting=forgetting, target_gain=gain, passed=keeps and learns, reasons=tuple(reasons))


def _points(share: float) -> str:
    """Return a share of a score as points of 100, without a minus before zero."""
    return f"{round(100 * share, 1) + 0.0:.1f} points"


def _sign(label: TaskLabel) -> float:
    return 1.0 if label.higher_is_better else -1.0


def _fields(label: TaskLabel) -> dict[str, Any]:
    return {field.name: getattr(label, field.name) for field in fields(label)}


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
