"""Pair the measurements of two models, document by document.

How a task's score comes from its documents is not asked of lm-eval, whose tasks may bring functions of their own: it
is found by computing the score of both models again in each known way. What none of them gives (corpus BLEU, F1 over
all documents) is compared by its value alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from osft.errors import EvaluationError
from osft.evaluation.forgetting import Outcome, SecondaryMetric, TaskLabel, join
from osft.evaluation.measurement import TaskMeasurement
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pooling import pool_earlier_holdouts, union_of
from osft.evaluation.statistics import Aggregation, PairedScores

if TYPE_CHECKING:
    # Only its fields are read, and it brings torch and lm-eval along, seconds that a comparison of files need not pay.
    from osft.evaluation.tasks import RequestedTask

VALUE_TOLERANCE = 1e-6
"""Two floats are the same score up to this: lm-eval sums in another order."""

Measurements = Mapping[str, TaskMeasurement]


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentPair:
    """One document with both models' answers: a line of ``samples.jsonl``."""

    task: str
    doc_id: int
    base_score: float | None
    tuned_score: float | None

    change: float | None
    """What the document gained, positive is better; like the scores, None where they do not make the task's score."""

    prompt: str
    gold: str
    base_answer: str
    tuned_answer: str


def compare(requested: "Sequence[RequestedTask]", base: Measurements, tuned: Measurements, *, seed: int) -> Outcome:
    """Pair two models' measurements, and compare them task by task and over all.

    A group that lm-eval scores as one over all its documents (mmlu) is one comparison, with the documents of
    all its tasks; the tasks of another group are compared each. What earlier versions held out is compared set by
    set, and counts as one.

    Args:
        requested: the tasks that both models were asked.
        base: the base model's measurements, by name of the task.
        tuned: the tuned model's.
        seed: of the bootstrap and the permutation tests.

    Raises:
        EvaluationError: if the two models were not asked the same, or a score cannot be compared.
    """
    paired = [task for one in requested for task in pair(one, base, tuned)]
    return join([task.compare(seed=seed) for task in paired], pool_earlier_holdouts(paired, seed=seed))


def pair(one: "RequestedTask", base: Measurements, tuned: Measurements) -> Iterator[PairedTask]:
    """Yield what a requested name becomes: one over all its documents, or one for each of its tasks.

    Args:
        one: the requested name.
        base: an earlier model's measurements, with all tasks of the name.
        tuned: the tuned model's.

    Raises:
        EvaluationError: if the two models were not asked the same.
    """
    for leaf in one.leaves:
        check_same_questions(base[leaf], tuned[leaf])
    by_leaf = {leaf: paired_scores(base[leaf], tuned[leaf]) for leaf in one.leaves}
    if pooled := _pooled(one, base, by_leaf):
        label = _label(one, one.name, base[one.leaves[0]])
        yield _whole(replace(label, leaves=one.leaves), pooled)
        return
    for leaf, scores in by_leaf.items():
        before, after = base[leaf], tuned[leaf]
        yield PairedTask(
            label=_label(one, leaf, before, secondary=_secondary(before, after)),
            scores=scores,
            base=before.value,
            tuned=after.value,
            num_documents=len(before.documents),
            is_earlier_holdout=one.is_earlier_holdout,
        )


def check_same_questions(base: TaskMeasurement, tuned: TaskMeasurement) -> None:
    """Refuse to pair results on different documents or prompts, or on none.

    Raises:
        EvaluationError: if a document or a prompt differs, or there is no document.
    """
    pairs = zip(base.documents, tuned.documents, strict=False)
    same = [(one.doc_id, one.fingerprint) == (other.doc_id, other.fingerprint) for one, other in pairs]
    if len(base.documents) != len(tuned.documents) or not all(same):
        document = base.documents[same.index(False)].doc_id if False in same else len(same)
        raise EvaluationError(
            f"task '{base.task}', document {document}: base and tuned model were asked different prompts. Their "
            "chat templates differ: save the base model's tokenizer with the tuned model, or do not apply one."
        )
    if not same:
        raise EvaluationError(f"task '{base.task}' has no documents. Check its data and its test_split.")


def document_pairs(
    requested: "Sequence[RequestedTask]", base: Measurements, tuned: Measurements
) -> Iterator[DocumentPair]:
    """Yield every document with both answers, in the order of the tasks."""
    for leaf in (leaf for one in requested for leaf in one.leaves):
        scores = paired_scores(base[leaf], tuned[leaf])
        improvements = [float(one) + 0.0 for one in scores.improvements] if scores else []
        for number, (before, after) in enumerate(zip(base[leaf].documents, tuned[leaf].documents, strict=True)):
            yield DocumentPair(
                task=leaf,
                doc_id=before.doc_id,
                base_score=before.score if scores else None,
                tuned_score=after.score if scores else None,
                change=improvements[number] if scores else None,
                prompt=before.prompt,
                gold=before.gold,
                base_answer=before.answer,
                tuned_answer=after.answer,
            )


def paired_scores(base: TaskMeasurement, tuned: TaskMeasurement) -> PairedScores | None:
    """Return the documents' scores with the way that gives both models' values, None if there is none.

    Args:
        base: the base model's measurement.
        tuned: the tuned model's, of the same documents.
    """
    documents = [*base.documents, *tuned.documents]
    weights = np.array([document.weight for document in base.documents], dtype=np.float64)
    if any(document.score is None for document in documents) or (weights <= 0).any():
        return None
    if not np.array_equal(weights, [document.weight for document in tuned.documents]):
        return None
    for aggregation in get_args(Aggregation):
        scores = PairedScores(
            base=np.array([document.score for document in base.documents], dtype=np.float64),
            tuned=np.array([document.score for document in tuned.documents], dtype=np.float64),
            weights=weights,
            aggregation=aggregation,
            higher_is_better=base.higher_is_better,
        )
        if _gives(scores, base.value, tuned.value):
            return scores
    return None


def _gives(scores: PairedScores, base_value: float, tuned_value: float) -> bool:
    """Return whether both models' values come out of their documents' scores."""
    total = scores.weights.sum()
    return all(
        math.isclose(float(scores.value(one.sum() / total)), value, rel_tol=VALUE_TOLERANCE, abs_tol=VALUE_TOLERANCE)
        for one, value in ((scores.base, base_value), (scores.tuned, tuned_value))
    )


def _whole(label: TaskLabel, pooled: PairedScores) -> PairedTask:
    base, tuned = (float(scores.sum() / pooled.weights.sum()) for scores in (pooled.base, pooled.tuned))
    return PairedTask(label=label, scores=pooled, base=base, tuned=tuned, num_documents=len(pooled.base))


def _pooled(
    one: "RequestedTask", base: Measurements, by_leaf: Mapping[str, PairedScores | None]
) -> PairedScores | None:
    """Return all documents of a group that lm-eval scores as one, None for anything else."""
    parts = [scores for scores in by_leaf.values() if scores is not None and scores.aggregation == "mean"]
    metrics = {base[leaf].metric for leaf in one.leaves}
    if len(by_leaf) == 1 or len(parts) != len(by_leaf) or len(metrics) != 1 or not one.pools(metrics.pop()):
        return None
    return union_of(parts)


def _label(
    one: "RequestedTask", name: str, measurement: TaskMeasurement, *, secondary: tuple[SecondaryMetric, ...] = ()
) -> TaskLabel:
    return TaskLabel(
        task=name,
        asked_as=one.asked_as,
        kind=one.kind,
        metric=measurement.metric,
        higher_is_better=measurement.higher_is_better,
        secondary=secondary,
    )


def _secondary(base: TaskMeasurement, tuned: TaskMeasurement) -> tuple[SecondaryMetric, ...]:
    return tuple(
        SecondaryMetric(metric=metric, base=value, tuned=tuned.other_values[metric])
        for metric, value in base.other_values.items()
        if metric in tuned.other_values
    )
