import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.forgetting import Outcome
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement
from osft.evaluation.pairing import check_same_questions, compare, document_pairs, paired_scores
from osft.evaluation.tasks import RequestedTask, load_tasks

WORDS = (10.0, 20.0, 30.0, 15.0)


@pytest.fixture(scope="module")
def tasks(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names to compare under; what the models answered is given by each test."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("one", "two"):
        kit.write_prose_task(folder, name)
    kit.write_group(folder, "pooled", ["one", "two"])
    kit.write_group(folder, "apart", ["one", "two"], weight_by_size=False)
    return folder


def requested(tasks: Path, name: str) -> tuple[RequestedTask, ...]:
    return load_tasks(EvaluationConfig(tasks=(name,), include_path=tasks))


def measured(
    scores: Sequence[float | None],
    *,
    task: str = "one",
    value: float | None = None,
    weights: Sequence[float] | None = None,
    **fields: Any,
) -> TaskMeasurement:
    documents = tuple(
        DocumentMeasurement(
            doc_id=number,
            fingerprint=f"document {number}",
            score=score,
            weight=1.0 if weights is None else weights[number],
            prompt=f"question {number}",
            gold="right",
            answer=f"answer worth {score}",
        )
        for number, score in enumerate(scores)
    )
    values = {"metric": "acc", "higher_is_better": True, "other_values": {}, "version": "1", "num_fewshot": 0} | fields
    mean = np.mean([score for score in scores if score is not None]) if value is None else value
    return TaskMeasurement(task=task, value=float(mean), documents=documents, **values)


def weighted(scores: Sequence[float], *, metric: str = "word_perplexity") -> TaskMeasurement:
    """A perplexity as lm-eval joins it: exp(-sum of log-likelihoods / sum of words)."""
    value = math.exp(-sum(scores) / sum(WORDS))
    return measured(scores, value=value, weights=WORDS, metric=metric, higher_is_better=False)


def outcome(tasks: Path, name: str, base: Sequence[TaskMeasurement], tuned: Sequence[TaskMeasurement]) -> Outcome:
    def by_task(measurements: Sequence[TaskMeasurement]) -> Mapping[str, TaskMeasurement]:
        return {one.task: one for one in measurements}

    return compare(requested(tasks, name), by_task(base), by_task(tuned), seed=0)


def test_documents_are_paired(tasks: Path) -> None:
    base, tuned = measured([1, 1, 1, 0]), measured([1, 0, 0, 1])

    (task,) = outcome(tasks, "one", [base], [tuned]).tasks

    assert (task.task, task.asked_as, task.n, task.lost, task.gained) == ("one", "one", 4, 2, 1)
    assert (task.base, task.tuned, task.delta) == (0.75, 0.5, -0.25)


def test_perplexity_of_all_words_has_an_interval(tasks: Path) -> None:
    base, tuned = weighted([-20.0, -45.0, -60.0, -31.0]), weighted([-22.0, -46.0, -66.0, -33.0])

    (task,) = outcome(tasks, "one", [base], [tuned]).tasks

    assert (task.base, task.tuned) == pytest.approx((base.value, tuned.value))
    assert task.delta == pytest.approx(base.value - tuned.value)
    assert task.ci_low is not None
    assert task.ci_high is not None
    assert task.ci_low < task.delta < task.ci_high < 0
    assert task.loss_upper is not None
    assert task.loss_upper > tuned.value / base.value - 1


@pytest.mark.parametrize(
    ("aggregation", "score"),
    [
        ("mean", lambda scores, weights: np.mean(scores)),
        ("perplexity", lambda scores, weights: np.exp(-np.sum(scores) / np.sum(weights))),
        ("bits", lambda scores, weights: -np.sum(scores) / np.sum(weights) / np.log(2)),
    ],
)
def test_way_from_documents_to_score_is_found(aggregation: str, score: Any) -> None:
    weights = (1.0,) * 4 if aggregation == "mean" else WORDS
    base, tuned = (-3.0, -4.0, -6.0, -2.5), (-3.5, -4.1, -6.0, -2.0)

    scores = paired_scores(*(measured(one, value=score(one, weights), weights=weights) for one in (base, tuned)))

    assert scores is not None
    assert scores.aggregation == aggregation


def test_perplexity_without_weights_is_found() -> None:
    base, tuned = (-3.0, -4.0), (-3.5, -4.0)

    scores = paired_scores(*(measured(one, value=math.exp(-sum(one) / 2)) for one in (base, tuned)))

    assert scores is not None
    assert scores.aggregation == "perplexity"


def test_one_document_of_a_perplexity_is_too_few_and_not_unbounded(tasks: Path) -> None:
    base, tuned = (measured([score], value=math.exp(-score), weights=[1.0]) for score in (-3.0, -2.0))

    result = outcome(tasks, "one", [base], [tuned])

    assert (result.unbounded_tasks, result.too_few_documents) == ((), ("one",))


@pytest.mark.parametrize(
    "tuned",
    [
        measured([1, 0, 1], value=0.9),
        measured([1, None, 1], value=0.5),
        measured([1, 0, 1], weights=[1.0, 2.0, 1.0]),
        measured([1, 0, 1], weights=[1.0, 0.0, 1.0]),
    ],
    ids=["other value", "no score", "other weights", "no weight"],
)
def test_score_that_documents_do_not_give_is_compared_by_its_value(tasks: Path, tuned: TaskMeasurement) -> None:
    base = measured([1, 1, 1])

    result = outcome(tasks, "one", [base], [tuned])

    assert result.unbounded_tasks == ("one",)
    assert result.tasks[0].ci_low is None
    assert result.tasks[0].delta == pytest.approx(tuned.value - 1)
    assert result.tasks[0].n == 3


def test_group_that_is_scored_as_one_is_compared_over_all_its_documents(tasks: Path) -> None:
    base = [measured([1, 1, 1], task="one"), measured([0], task="two")]
    tuned = [measured([1, 1, 0], task="one"), measured([1], task="two")]

    (task,) = outcome(tasks, "pooled", base, tuned).tasks

    assert (task.task, task.n, task.base, task.lost, task.gained) == ("pooled", 4, 0.75, 1, 1)
    assert task.leaves == ("one", "two")


def test_group_without_one_score_is_compared_task_by_task(tasks: Path) -> None:
    measurements = [measured([1, 1, 1], task="one"), measured([0], task="two")]

    compared = outcome(tasks, "apart", measurements, measurements).tasks

    assert [(task.task, task.asked_as) for task in compared] == [("one", "apart"), ("two", "apart")]
    assert {task.leaves for task in compared} == {()}


def test_group_with_a_score_that_is_no_mean_is_compared_task_by_task(tasks: Path) -> None:
    measurements = [measured([1, 1, 1], task="one"), measured([0, 1], task="two", value=0.9)]

    compared = outcome(tasks, "pooled", measurements, measurements)

    assert [task.task for task in compared.tasks] == ["one", "two"]
    assert compared.unbounded_tasks == ("two",)


def test_other_metrics_of_both_models_are_kept(tasks: Path) -> None:
    base = measured([1, 1], other_values={"f1": 0.9, "only_base": 1.0})
    tuned = measured([1, 0], other_values={"f1": 0.8})

    (task,) = outcome(tasks, "one", [base], [tuned]).tasks

    assert [(one.metric, one.base, one.tuned) for one in task.secondary] == [("f1", 0.9, 0.8)]


@pytest.mark.parametrize("num_documents", [2, 1])
def test_other_prompts_for_the_tuned_model_are_an_error(num_documents: int) -> None:
    base = measured([1, 1])
    other = replace(base.documents[1], fingerprint="other")

    with pytest.raises(EvaluationError, match="task 'one', document 1: base and tuned model were asked different"):
        check_same_questions(base, replace(base, documents=(base.documents[0], other)[:num_documents]))


def test_task_without_documents_is_an_error(tasks: Path) -> None:
    empty = measured([], value=0.0)

    with pytest.raises(EvaluationError, match="task 'one' has no documents"):
        outcome(tasks, "one", [empty], [empty])


def test_every_document_is_given_with_both_answers(tasks: Path) -> None:
    base, tuned = {"one": measured([1, 0.5])}, {"one": measured([0, 0.5])}

    pairs = list(document_pairs(requested(tasks, "one"), base, tuned))

    assert [(pair.doc_id, pair.base_score, pair.tuned_score, pair.change) for pair in pairs] == [
        (0, 1, 0, -1.0),
        (1, 0.5, 0.5, 0.0),
    ]
    assert (pairs[0].prompt, pairs[0].base_answer, pairs[0].tuned_answer) == (
        "question 0",
        "answer worth 1",
        "answer worth 0",
    )


def test_document_of_a_perplexity_became_worse_if_it_is_less_likely(tasks: Path) -> None:
    base, tuned = weighted([-20.0, -45.0, -60.0, -31.0]), weighted([-22.0, -45.0, -60.0, -30.0])

    pairs = list(document_pairs(requested(tasks, "one"), {"one": base}, {"one": tuned}))

    assert [pair.change for pair in pairs] == [-2.0, 0.0, 0.0, 1.0]


def test_documents_that_do_not_give_the_score_have_no_change(tasks: Path) -> None:
    base, tuned = {"one": measured([1, 0], value=0.9)}, {"one": measured([0, 1], value=0.9)}

    pairs = list(document_pairs(requested(tasks, "one"), base, tuned))

    assert {(pair.base_score, pair.tuned_score, pair.change) for pair in pairs} == {(None, None, None)}
