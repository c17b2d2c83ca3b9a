"""Paired statistics: is a difference between two models on the same documents real, and how large may it be.

Both models answer the same documents, so each document is its own control. What is used, and why:

- Right-or-wrong scores: the adjusted Wald interval of Bonett & Price ("Adjusted Wald Confidence Interval for a
  Difference of Binomial Proportions Based on Paired Data", J. Educational and Behavioral Statistics 37(4), 2012;
  recommended by Fagerland, Lydersen & Laake, Statistics in Medicine 33, 2014), and the exact test of McNemar
  (Psychometrika 12, 1947) on the documents that changed.
- Other scores, and perplexities: the BCa bootstrap over documents (Efron, JASA 82, 1987), stretched by Student's
  factor for few documents (Hesterberg, The American Statistician 69, 2015), and a permutation test that swaps the
  two models of a document (Fisher, The Design of Experiments, 1935).
- Several tests at once: Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979).
- Upper bounds of a loss: draws of the mean with one more document, which lost as much as a document can (Gaffke's
  bound: Learned-Miller & Thomas, arXiv:1905.06208; for right-or-wrong scores without a gain it is Clopper &
  Pearson's exact one). An interval may be wrong on either side by a little; the bound that decides may not, and the
  symmetric methods above are at 89% instead of 95% where losses are rare (2 to 4 expected).

Pure functions over arrays; scipy's own bootstrap and permutation test do the same, but hold arrays of documents
times documents and sort where a sign is enough: the tests compare against them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from osft.errors import EvaluationError

CONFIDENCE = 0.95
RESAMPLES = 9_999
BATCH_NUMBERS = 250_000
"""Most numbers (documents times resamples) in memory at once, unless one resample has more: 2 MB stay in a cache."""

EXACT_DOCUMENTS = 13
"""Up to this many changed documents the permutation test counts all swaps: 2^13 are fewer than the resamples."""

ROUND_OFF = 1e-9
"""Differences up to this share of the largest are the same number, computed in another order."""

MAX_EXPONENT = 700.0
"""Perplexities are cut at exp of this, near the largest float: a draw must stay a number."""

Scores = NDArray[np.float64]
Aggregation = Literal["mean", "perplexity", "bits"]
"""How a task's score comes from its documents' (score, weight): ``sum s / sum w``, ``exp(-sum s / sum w)``, or
``-sum s / sum w / ln 2``. The weights are 1, or words or bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A confidence interval of a change."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedScores:
    """Two models' scores of the same documents, in the same order; at least one, all finite."""

    base: Scores
    """``[documents]``."""

    tuned: Scores
    """``[documents]``."""

    weights: Scores
    """``[documents]``, positive, the same for both models."""

    aggregation: Aggregation = "mean"
    higher_is_better: bool = True

    @property
    def is_binary(self) -> bool:
        """Whether every score is right or wrong."""
        both = np.concatenate([self.base, self.tuned])
        return self.aggregation == "mean" and bool(((both == 0) | (both == 1)).all())

    @property
    def is_share(self) -> bool:
        """Whether no document can lose more than 1."""
        both = np.concatenate([self.base, self.tuned])
        return self.aggregation == "mean" and bool(both.min() >= 0 and both.max() <= 1)

    @property
    def direction(self) -> float:
        """1 if a larger mean of the documents' scores is better, else -1."""
        return 1.0 if self.higher_is_better == (self.aggregation == "mean") else -1.0

    @property
    def improvements(self) -> Scores:
        """``[documents]``: what each document gained; negative is lost."""
        return self.direction * (self.tuned - self.base)

    @property
    def is_unanimous(self) -> bool:
        """Whether every document changed alike, so that a bootstrap sees no spread."""
        rates = self.improvements / self.weights
        return bool(np.ptp(rates) <= ROUND_OFF * max(1.0, float(np.abs(rates).max())))

    @property
    def is_same_model(self) -> bool:
        """Whether log-likelihoods of several documents are equal in every digit: see :func:`paired_uncertainty`."""
        return self.aggregation != "mean" and len(self.base) > 1 and np.array_equal(self.base, self.tuned)

    @property
    def room(self) -> float:
        """How far a document's mean may move: 1 for shares, else as far as documents lie apart, or to 0 if none do."""
        if self.is_share:
            return 1.0
        rates = np.concatenate([self.base, self.tuned]) / np.concatenate([self.weights, self.weights])
        return float(np.ptp(rates) or np.abs(rates).max())

    def value(self, mean: Scores | float) -> Scores:
        """Return the task's score at a mean of its documents' scores."""
        if self.aggregation == "perplexity":
            return np.exp(np.minimum(-np.asarray(mean, dtype=np.float64), MAX_EXPONENT))
        return np.asarray(mean, dtype=np.float64) * (1.0 if self.aggregation == "mean" else -1 / math.log(2))

    def change(self, base_mean: Scores | float, improvement: Scores | float, *, relative: bool) -> Scores:
        """Return the change of the task's score, positive is better.

        Args:
            base_mean: mean of the base model's scores.
            improvement: what the mean improves by.
            relative: whether to divide by the base model's score. One that is 0 in a resample stands for no scale at
                all, and :func:`scale_of` all documents is used; so it is in every resample if the score is 0.
        """
        base = self.value(base_mean)
        tuned = self.value(base_mean + self.direction * np.asarray(improvement))
        change = (tuned - base) * (1.0 if self.higher_is_better else -1.0)
        if not relative:
            return change
        total = self.weights.sum()
        base_value, tuned_value = (float(self.value(one.sum() / total)) for one in (self.base, self.tuned))
        scale = np.abs(base) if base_value else np.zeros(1)
        return change / np.where(scale > 0, scale, scale_of(base_value, tuned_value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Uncertainty:
    """What chance may have done to the change of one task's score."""

    interval: Interval
    """Two-sided 95% interval of the change, in the metric's own unit; positive is better."""

    p_value: float
    """How often models that are equally good differ by this much, either way."""

    loss_draws: Scores
    """``[RESAMPLES]``: losses that the documents do not rule out, as shares of the score; negative is gained."""


def scale_of(base: float, tuned: float) -> float:
    """Return what a relative change is a share of: the base's score, or the tuned one's if that is 0.

    From 0 everything was gained or lost, a share of 1 or -1. Two zeros have no scale, and 1 stands for it.
    """
    return abs(base) or abs(tuned) or 1.0


def paired_uncertainty(scores: PairedScores, *, relative: bool, seeds: Sequence[int]) -> Uncertainty | None:
    """Return interval, test and draws of a task's change by the methods that the module's docstring names.

    Documents that all changed alike show no spread, but do not prove that there is none. ``n`` of them leave it open,
    at level ``a``, that a share ``1 - a^(1/n)`` behaves otherwise (three of n at 5%); these are taken to move as far as
    a document can: to 0 or 1 for shares, over the range of all documents' scores else.

    Log-likelihoods are another thing: nearly every weight of a model is in each, so that two models that differ agree
    in all digits of none. If they do in all documents it is the same model, and no loss is left open. Right-or-wrong
    scores prove no such thing, and neither does one document.

    Args:
        scores: the documents.
        relative: whether draws are shares of the base model's score.
        seeds: of all draws.

    Returns:
        None for one document of a score without limits, which says nothing of how far another may move.
    """
    rng = np.random.default_rng(seeds)
    num_documents = len(scores.base)
    if scores.is_binary:
        lost, gained = int((scores.improvements < 0).sum()), int((scores.improvements > 0).sum())
        draws = proportion_loss_draws(lost=lost, gained=gained, num_documents=num_documents, rng=rng)
        return Uncertainty(
            interval=paired_proportion_interval(lost=lost, gained=gained, num_documents=num_documents),
            p_value=mcnemar_p_value(lost=lost, gained=gained),
            loss_draws=-scores.change(scores.base.mean(), -draws, relative=True) if relative else draws,
        )
    if num_documents == 1 and not scores.is_share:
        return None
    if scores.is_same_model:
        return Uncertainty(interval=Interval(low=0.0, high=0.0), p_value=1.0, loss_draws=np.zeros(RESAMPLES))
    base_means, improvements = bootstrap_means(scores, rng)
    if scores.is_unanimous:
        interval = unanimous_interval(scores)
    else:
        interval = bca_interval(scores, scores.change(base_means, improvements, relative=False))
    return Uncertainty(
        interval=interval,
        p_value=permutation_p_value(scores.improvements, rng),
        loss_draws=-scores.change(base_means, pessimistic(scores, improvements, rng), relative=relative),
    )


def paired_proportion_interval(*, lost: int, gained: int, num_documents: int) -> Interval:
    """Return Bonett & Price's 95% interval of ``(gained - lost) / n`` for paired right-or-wrong scores.

    With ``p = (gained + 1) / (n + 2)`` and ``q = (lost + 1) / (n + 2)`` it is
    ``p - q +- z sqrt((p + q - (p - q)^2) / (n + 2))`` (their equation for the adjusted Wald interval), cut to -1 and 1.
    It stays open when no document changed, and is too wide (97% to 100% instead of 95%) where few did: 2 of 100.

    Args:
        lost: documents that only the base model answers rightly.
        gained: documents that only the tuned model answers rightly.
        num_documents: all documents, at least 1.
    """
    p, q = (gained + 1) / (num_documents + 2), (lost + 1) / (num_documents + 2)
    half_width = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((p + q - (p - q) ** 2) / (num_documents + 2))
    return Interval(low=max(-1.0, float(p - q - half_width)), high=min(1.0, float(p - q + half_width)))


def mcnemar_p_value(*, lost: int, gained: int) -> float:
    """Return McNemar's exact two-sided p-value: a changed document is as likely lost as gained if the models are equal.

    Args:
        lost: documents that only the base model answers rightly.
        gained: documents that only the tuned model answers rightly.
    """
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def proportion_loss_draws(*, lost: int, gained: int, num_documents: int, rng: np.random.Generator) -> Scores:
    """Return ``[RESAMPLES]`` shares lost, of right-or-wrong scores with one more document that was lost.

    The shares of lost, gained and unchanged documents are Dirichlet(lost + 1, gained, unchanged), the Bayesian
    bootstrap (Rubin, Annals of Statistics 9, 1981) with that document. Without a gain its quantiles are Clopper &
    Pearson's: nine unchanged documents do not rule out a loss of 28%, and 59 are needed for 5%.
    """
    counts = (lost + 1, gained, num_documents - lost - gained)
    parts = [rng.standard_gamma(count, RESAMPLES) if count else np.zeros(RESAMPLES) for count in counts]
    return (parts[0] - parts[1]) / sum(parts)


def bootstrap_means(scores: PairedScores, rng: np.random.Generator) -> tuple[Scores, Scores]:
    """Return the base model's mean and the improvement of the mean, each ``[RESAMPLES]``, over documents redrawn."""
    columns = np.stack([scores.base, scores.improvements, scores.weights], axis=1)
    num_documents = len(columns)
    sums = np.empty((RESAMPLES, 3))
    rows = max(1, BATCH_NUMBERS // num_documents)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = rng.integers(num_documents, size=(size, num_documents))
        drawn += num_documents * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_documents).reshape(size, num_documents)
        sums[start : start + size] = counts.astype(np.float64) @ columns
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]


def bca_interval(scores: PairedScores, draws: Scores) -> Interval:
    """Return the bias-corrected, accelerated 95% interval of a change, stretched for few documents.

    Both ends are moved away from the change by ``sqrt(n / (n - 1)) t / z``: the bootstrap's spread is that of a sample
    and not of what it was drawn from, and Student's t allows for how little few documents say of it. In
    simulations it covers the truth 93% to 97% of the time where documents change as F1 does, or normally; 91% for 20
    to 40 documents of which an eighth change, and 82% to 93% for 5 to 300 whose changes are as skewed as a lognormal's.

    Args:
        scores: the documents.
        draws: ``[RESAMPLES]``, changes of the task's score over documents redrawn.
    """
    base, improvement, weight = scores.base.sum(), scores.improvements.sum(), scores.weights.sum()
    change = float(scores.change(base / weight, improvement / weight, relative=False))
    others = weight - scores.weights
    left_out = scores.change(
        (base - scores.base) / others, (improvement - scores.improvements) / others, relative=False
    )
    deviations = left_out.mean() - left_out
    deviations /= np.abs(deviations).max() or 1.0
    acceleration = float((deviations**3).sum() / (6 * max(1.0, (deviations**2).sum()) ** 1.5))
    below = ((draws < change).sum() + (draws == change).sum() / 2) / len(draws)
    bias = stats.norm.ppf(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    z = stats.norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    levels = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    stretched = change + (np.quantile(draws, levels) - change) * student_factor(len(scores.base), two_sided=True)
    limit = 1.0 if scores.is_share else math.inf
    return Interval(low=max(-limit, float(stretched[0])), high=min(limit, float(stretched[1])))


def unanimous_interval(scores: PairedScores) -> Interval:
    """Return the 95% interval of a change that all documents share; :func:`paired_uncertainty` says how.

    Args:
        scores: the documents; their room is not 0.
    """
    otherwise = 1 - ((1 - CONFIDENCE) / 2) ** (1 / len(scores.base))
    total = scores.weights.sum()
    base, improvement = scores.base.sum() / total, scores.improvements.sum() / total
    worst, best = (-1.0, 1.0) if scores.is_share else (improvement - scores.room, improvement + scores.room)
    ends = improvement + otherwise * (np.array([worst, best]) - improvement)
    low, high = scores.change(base, ends, relative=False)
    return Interval(low=float(low), high=float(high))


def pessimistic(scores: PairedScores, improvements: Scores, rng: np.random.Generator) -> Scores:
    """Return bootstrap draws of the mean's improvement that also allow for documents worse than any that was seen.

    One more document, of a weight drawn from Beta(1, n), lost all it could: everything where scores are shares. Scores
    without limits have no worst; it is taken as far from the mean as any document that was seen, or as
    :func:`paired_uncertainty` says if all changed alike, and the draws are stretched as the interval is. No method can
    do better for every such score (Bahadur & Savage, Annals of Mathematical Statistics 27, 1956): of lognormal losses,
    the bound of 20 documents holds in 86 of 100 simulations, that of 60 in 94.

    Args:
        scores: the documents.
        improvements: ``[RESAMPLES]``, not changed.
        rng: of the weights.
    """
    num_documents = len(scores.base)
    mean = scores.improvements.sum() / scores.weights.sum()
    if scores.is_share:
        worst = -1.0
    elif scores.is_unanimous:
        worst = mean - scores.room
    else:
        improvements = mean + (improvements - mean) * student_factor(num_documents, two_sided=False)
        worst = mean - np.abs(scores.improvements - mean * scores.weights).max() / scores.weights.mean()
    weight = rng.beta(1, num_documents, size=len(improvements))
    return (1 - weight) * improvements + weight * worst


def student_factor(num_documents: int, *, two_sided: bool) -> float:
    """Return by how much a bootstrap interval of so few documents is too narrow; 1 for many.

    Args:
        num_documents: at least 2.
        two_sided: whether the 95% are cut at both ends.
    """
    level = (1 + CONFIDENCE) / 2 if two_sided else CONFIDENCE
    ratio = stats.t.ppf(level, num_documents - 1) / stats.norm.ppf(level)
    return float(math.sqrt(num_documents / (num_documents - 1)) * ratio)


def permutation_p_value(improvements: Scores, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of a paired permutation test: swapping a document's models turns its sign.

    All swaps are counted where few documents changed, else ``RESAMPLES`` random ones and the one that was observed
    (Phipson & Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010: no p-value of 0).

    Args:
        improvements: ``[documents]``.
        rng: of the swaps.
    """
    changed = improvements[improvements != 0]
    if not len(changed):
        return 1.0
    # Sums that are equal but for the order of adding count as reached.
    reached = abs(changed.sum()) - ROUND_OFF * np.abs(changed).sum()
    if len(changed) <= EXACT_DOCUMENTS:
        swaps = np.arange(2 ** len(changed))[:, None] >> np.arange(len(changed)) & 1
        return float((np.abs((1.0 - 2.0 * swaps) @ changed) >= reached).mean())
    rows, hits = max(1, BATCH_NUMBERS // len(changed)), 0
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        bits = np.unpackbits(rng.integers(256, size=(size, -(-len(changed) // 8)), dtype=np.uint8), axis=1)
        sums = changed.sum() - 2.0 * (bits[:, : len(changed)].astype(np.float64) @ changed)
        hits += int((np.abs(sums) >= reached).sum())
    return (hits + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down rule: ``max over j <= i of (m - j + 1) p_(j)``.

    Args:
        p_values: of all tests, in any order.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors))
    return [float(one) for one in adjusted]


def loss_upper_bound(loss_draws: Scores) -> float:
    """Return the one-sided 95% upper confidence bound of what was lost; a gain counts as 0.

    Raises:
        EvaluationError: if a draw is not finite: ``max(0.0, nan)`` is 0.0, and a gate must not pass on that.
    """
    if not np.isfinite(loss_draws).all():
        broken = int((~np.isfinite(loss_draws)).sum())
        raise EvaluationError(
            f"{broken} of {len(loss_draws)} draws of a loss are not finite, so nothing bounds it. The scores of some "
            "task are too large or too small to compute with: choose another metric for it, or leave it out."
        )
    return max(0.0, float(np.quantile(loss_draws, CONFIDENCE)))
