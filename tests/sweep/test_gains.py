import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osft.errors import EvaluationError
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.measurement import TaskMeasurement, measurement_path, save_measurements
from osft.evaluation.statistics import paired_proportion_interval
from osft.sweep.gains import Answers, MeanChange, compare_gains, gain_of, mean_change
from tests.sweep.sweeps import KEPT, UNKNOWN, make_report, measure, right, without_leaves

PERPLEXITY = {"metric": "perplexity", "higher_is_better": False}


def answers(folder: Path, before: Mapping[str, TaskMeasurement], after: Mapping[str, TaskMeasurement]) -> Answers:
    kept = {"kept": measure("kept", KEPT)}
    save_measurements(after, folder)
    return Answers(report=make_report({**kept, **before}, {**kept, **after}), folder=folder)


def answers_to(folder: Path, **scores: list[float]) -> Answers:
    """Answers of a model whose base answers nothing."""
    before = {task: measure(task, [0.0] * len(values)) for task, values in scores.items()}
    return answers(folder, before, {task: measure(task, values) for task, values in scores.items()})


def prose(nats: list[float]) -> TaskMeasurement:
    """A perplexity over documents of one token each."""
    value = math.exp(-sum(nats) / len(nats))
    return measure("prose", nats, value=value, **PERPLEXITY)


def change(delta: float, low: float, high: float, **fields: Any) -> TaskComparison:
    values = {"task": "t", "kind": "target", "metric": "acc", "base": 0.0, "tuned": delta, "n": 100}
    return TaskComparison(**values | {"delta": delta, "ci_low": low, "ci_high": high} | fields)


def test_the_gain_on_one_task_has_the_tasks_interval(tmp_path: Path) -> None:
    report = answers_to(tmp_path, new=right(60)).report

    gain = gain_of(report)

    task = next(task for task in report.tasks if task.task == "new")
    assert gain is not None
    assert gain.value == report.target_gain
    assert (gain.low, gain.high) == pytest.approx((task.ci_low, task.ci_high))


def test_the_gain_over_several_tasks_is_surer_than_on_each() -> None:
    tasks = [change(0.4, 0.3, 0.46)] * 4

    gain = mean_change(tasks, shares_of=tasks)

    assert (gain.value, gain.low, gain.high) == pytest.approx((0.4, 0.35, 0.43))
    assert gain.is_clear


def test_the_interval_over_two_tasks_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, documents, rounds, hits = (0.1, 0.3), 80, 600, 0

    for _ in range(rounds):
        tasks = []
        for gain in truth:
            lost, gained, _ = rng.multinomial(documents, [0.05, 0.05 + gain, 0.9 - gain])
            interval = paired_proportion_interval(lost=lost, gained=gained, num_documents=documents)
            tasks.append(change((gained - lost) / documents, interval.low, interval.high))
        found = mean_change(tasks, shares_of=tasks)
        hits += found.low <= sum(truth) / 2 <= found.high

    # Of 600 rounds 95% hits are 570, and chance moves them by 11 (two standard errors).
    assert 559 <= hits <= 588


def test_without_a_target_task_no_gain_is_known(tmp_path: Path) -> None:
    one = answers(tmp_path, {}, {})

    assert gain_of(one.report) is None
    assert compare_gains(one, one) is None


def test_models_that_answered_the_same_documents_are_told_apart_though_their_gains_are_not(tmp_path: Path) -> None:
    more, less = answers_to(tmp_path / "more", new=right(110)), answers_to(tmp_path / "less", new=right(103))

    found = compare_gains(more, less)

    assert found is not None
    assert found.value == pytest.approx(0.035)
    assert found.is_clear
    assert gain_of(more.report).low < gain_of(less.report).high


def test_a_difference_of_a_few_documents_is_not_told_from_chance(tmp_path: Path) -> None:
    more, less = answers_to(tmp_path / "more", new=right(110)), answers_to(tmp_path / "less", new=right(109))

    found = compare_gains(more, less)

    assert found is not None
    assert not found.is_clear
    assert found.low < 0 < found.high


def test_a_perplexity_is_compared_as_a_share_of_the_bases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nats = rng.normal(-3.0, 0.5, 100)
    base = {"prose": prose(list(nats))}
    more = answers(tmp_path / "more", base, {"prose": prose(list(nats + rng.normal(1.0, 0.1, 100)))})
    less = answers(tmp_path / "less", base, {"prose": prose(list(nats + rng.normal(0.5, 0.1, 100)))})

    found = compare_gains(more, less)

    assert found is not None
    assert found.value == pytest.approx(more.report.target_gain - less.report.target_gain)
    assert 0 < found.low < found.value < found.high < 1
    assert found.is_clear


def test_a_group_that_is_scored_as_one_is_paired_over_all_its_documents(tmp_path: Path) -> None:
    more, less = (
        answers_to(tmp_path / str(number), **{"new.a": right(number), "new.b": right(number)}) for number in (110, 103)
    )

    found = compare_gains(more, less)

    assert found is not None
    assert found.value == pytest.approx(0.035)
    assert found.is_clear
    assert found.high - found.value < 0.02


def test_groups_are_told_from_each_other(tmp_path: Path) -> None:
    more, less = (
        answers_to(tmp_path / str(number), **{f"{group}.{part}": right(number) for group in "xy" for part in "ab"})
        for number in (110, 103)
    )

    found = compare_gains(more, less)

    assert found is not None
    assert found.value == pytest.approx(0.035)
    assert (found.is_clear, found.is_paired) == (True, True)


def test_where_a_report_does_not_name_a_groups_tasks_the_gains_are_not_paired(tmp_path: Path) -> None:
    more, less = (
        without_leaves(answers_to(tmp_path / str(number), **{"new.a": right(number), "new.b": right(number)}))
        for number in (110, 10)
    )

    found = compare_gains(more, less)

    assert found == MeanChange(value=pytest.approx(0.5), is_paired=False)


def test_where_a_groups_tasks_have_other_documents_than_its_score_the_gains_are_not_paired(tmp_path: Path) -> None:
    more, less = (
        answers_to(tmp_path / str(number), **{"new.a": right(number), "new.b": right(number)}) for number in (110, 10)
    )
    for one in (more, less):
        measure("new.b", UNKNOWN[:50]).save(measurement_path(one.folder, "new.b"))

    found = compare_gains(more, less)

    assert found == MeanChange(value=pytest.approx(0.5), is_paired=False)


def test_a_score_that_is_no_function_of_its_documents_counts_as_measured(tmp_path: Path) -> None:
    base = {"bleu": measure("bleu", right(50), value=0.1, metric="bleu")}
    more, less = (
        answers(tmp_path / str(value), base, {"bleu": measure("bleu", right(50), value=value, metric="bleu")})
        for value in (0.4, 0.39)
    )

    found = compare_gains(more, less)

    assert found is not None
    assert (found.low, found.high, found.is_clear) == (None, None, True)
    assert found.value == pytest.approx(0.01)


def test_one_document_tells_nothing(tmp_path: Path) -> None:
    base = {"prose": prose([-3.0])}
    more, less = (answers(tmp_path / str(nats), base, {"prose": prose([nats])}) for nats in (-1.0, -2.0))

    found = compare_gains(more, less)

    assert found is not None
    assert found.value > 0
    assert not found.is_clear


def test_one_document_counts_as_measured_beside_a_task_that_has_many(tmp_path: Path) -> None:
    base = {"prose": prose([-3.0]), "new": measure("new", UNKNOWN)}
    more, less = (
        answers(tmp_path / str(number), base, {"prose": prose([-2.0]), "new": measure("new", right(number))})
        for number in (110, 10)
    )

    found = compare_gains(more, less)

    assert found is not None
    assert found.value == pytest.approx(0.25)
    assert found.is_clear


def test_a_missing_file_of_a_groups_answers_is_an_error(tmp_path: Path) -> None:
    one = answers_to(tmp_path, **{"new.a": right(110), "new.b": right(110)})
    measurement_path(tmp_path, "new.b").unlink()

    with pytest.raises(EvaluationError, match=r"new\.b\.parquet: no measurement of a task .* evaluate again"):
        compare_gains(one, one)


def test_models_that_were_asked_other_documents_are_not_compared(tmp_path: Path) -> None:
    more, less = answers_to(tmp_path / "more", new=right(110)), answers_to(tmp_path / "less", new=right(50, of=100))

    with pytest.raises(EvaluationError, match="task 'new', document 100"):
        compare_gains(more, less)


def test_a_model_that_was_not_asked_a_task_is_not_compared(tmp_path: Path) -> None:
    more, less = answers_to(tmp_path, new=right(110)), answers_to(tmp_path, other=right(110))

    with pytest.raises(EvaluationError, match="tuned was not asked 'new', as another model of the sweep was. Retry"):
        compare_gains(more, less)
