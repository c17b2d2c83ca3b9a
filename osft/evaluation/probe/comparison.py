"""How far the tuned model's predictions are from the base's, token by token.

At every predicted token of the probe each model gives the vocabulary's tokens ``v`` probabilities: ``p(v)`` the base,
``q(v)`` the tuned model. What is measured:

- ``kl``, the mean over the tokens of ``KL(base || tuned) = sum_v p(v) log(p(v) / q(v))`` (Kullback & Leibler, Annals
  of Mathematical Statistics 22, 1951), in nats, over the whole vocabulary. 0 says that nothing changed. It needs no
  right answers, and unlike a perplexity it sees changes that cancel out;
- the perplexity of each model, ``exp`` of the mean of ``-log p(token)``;
- ``agreement``, the share of the tokens where both models find the same token the most likely one.

The interval of ``kl`` is a bootstrap over documents, since the tokens of one are not independent.

Both models' logits are made next to each other, some positions at a time, so the memory that they take does not grow
with the text. A model compared with itself computes the same bits twice: its ``kl`` is exactly 0.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osft.content_cache import content_key
from osft.errors import EvaluationError, one_line
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.probe.base_states import STATES_NAME, cache_folder, model_parts
from osft.evaluation.probe.side_by_side import compare_states
from osft.evaluation.probe.text import Documents
from osft.evaluation.statistics import Interval, PairedScores, bca_interval, bootstrap_means
from osft.workspace import read_json, write_json

logger = logging.getLogger(__name__)

BOOTSTRAP_SEED = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeComparison:
    """Both models on the probe, without regard to what is right."""

    documents: int
    tokens: int
    """Predicted tokens: all but the first of each window."""

    base_perplexity: float
    tuned_perplexity: float

    kl: float
    """``KL(base || tuned)`` in nats a token; 0 where nothing changed."""

    kl_low: float | None
    kl_high: float | None
    """95% interval of :attr:`kl`; None if the documents show no spread: one, or copies of one."""

    agreement: float
    """Share of the tokens where both models' most likely token is the same."""


def compare_on_probe(remembered: Path, model: LazyModel, documents: Documents, cache: Path) -> ProbeComparison:
    """Return how far ``model`` is from the base; it is loaded only if that is not known yet.

    Args:
        remembered: what :func:`osft.evaluation.probe.base_states.remember_on_probe` returned for the base model.
        model: the tuned model, of the same vocabulary.
        documents: those that the base model was asked.
        cache: folder of the cache.

    Raises:
        EvaluationError: if a number is not finite, the two models make their logits differently, or what was kept of
            the base model cannot be read.
    """
    # The entry's name stands for the base model and the documents.
    key = content_key(model_parts(model) | {"base": remembered.name, "seed": BOOTSTRAP_SEED})
    path = cache_folder(cache) / f"{key}.json"
    if known := _load(path):
        logger.info("%s: how far it is from the base on the probe is known", model.label)
        return known
    comparison = summarize(model.run(compare_states, remembered / STATES_NAME, len(documents)))
    write_json(path, comparison)
    return comparison


def _load(path: Path) -> ProbeComparison | None:
    """Return the comparison that is kept in ``path``; None if there is none that can be read."""
    try:
        return ProbeComparison(**read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s: cannot be read (%s); the probe is measured again", path, one_line(error))
        return None


def summarize(totals: NDArray[np.float64]) -> ProbeComparison:
    """Return the means over all tokens.

    Args:
        totals: ``[5, documents]``, as :func:`osft.evaluation.probe.side_by_side.compare_states` returns them.

    Raises:
        EvaluationError: if a perplexity is beyond the range of a float.
    """
    num_tokens = int(totals[0].sum())
    base_surprise, tuned_surprise, kl, agreement = (math.fsum(sums) / num_tokens for sums in totals[1:])
    interval = _kl_interval(tokens=totals[0], kl=totals[3])
    return ProbeComparison(
        documents=totals.shape[1],
        tokens=num_tokens,
        base_perplexity=_perplexity("base", base_surprise),
        tuned_perplexity=_perplexity("tuned", tuned_surprise),
        kl=kl,
        kl_low=interval.low if interval else None,
        kl_high=interval.high if interval else None,
        agreement=agreement,
    )


def _perplexity(label: str, surprise: float) -> float:
    try:
        return math.exp(surprise)
    except OverflowError as error:
        raise EvaluationError(
            f"the {label} model's perplexity on the probe overflows ({surprise:.4g} nats a token). "
            "Its weights are broken."
        ) from error


def _kl_interval(*, tokens: NDArray[np.float64], kl: NDArray[np.float64]) -> Interval | None:
    """Return the 95% interval of ``sum(kl) / sum(tokens)``; None if the documents show no spread.

    Args:
        tokens: ``[documents]``.
        kl: ``[documents]``, sums over the tokens of each.
    """
    if not kl.any():
        return Interval(low=0.0, high=0.0)
    # The gain over zeros is the mean itself.
    scores = PairedScores(base=np.zeros_like(kl), tuned=kl, weights=tokens)
    if scores.is_unanimous:
        return None
    _, means = bootstrap_means(scores, np.random.default_rng(BOOTSTRAP_SEED))
    interval = bca_interval(scores, means)
    return Interval(low=max(0.0, interval.low), high=interval.high)
