import math
from collections.abc import Callable
from typing import Any

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.metrics import flat_metrics

MakeReport = Callable[..., ForgettingReport]


def test_metrics_have_stable_flat_names(make_report: MakeReport) -> None:
    numbers = flat_metrics(make_report())

    assert numbers == {
        "forgetting": 0.015,
        "forgetting_upper": 0.0325,
        "target_gain": 1.0,
        "passed": 1.0,
        "backward_transfer": -0.015,
        "average_accuracy": 0.985,
        "retention.capitals[eu].base": 1.0,
        "retention.capitals[eu].tuned": 0.97,
        "retention.capitals[eu].delta": -0.03,
        "retention.prose.base": 12.0,
        "retention.prose.tuned": 12.0,
        "retention.prose.delta": 0.0,
        "target.elements.base": 0.0,
        "target.elements.tuned": 1.0,
        "target.elements.delta": 1.0,
        "unfreeze_rank_ratio": 0.25,
        "learning_rate": 5e-6,
        "num_epochs": 3.0,
    }


def test_what_was_not_measured_is_missing_and_not_zero(make_report: MakeReport) -> None:
    report = make_report(target_gain=None, average_accuracy_base=None, average_accuracy_tuned=None, training={})

    assert not {"target_gain", "average_accuracy", "learning_rate", "probe.kl"} & set(flat_metrics(report))


def test_value_that_is_no_bound_is_not_given_as_one(
    make_report: MakeReport, make_task: Callable[..., TaskComparison]
) -> None:
    assert "forgetting_upper" not in flat_metrics(make_report(tasks=(make_task(loss_upper=None),)))


def test_names_of_tasks_are_kept_as_they_are(make_report: MakeReport, make_task: Callable[..., TaskComparison]) -> None:
    report = make_report(tasks=(make_task(task="my task|v 2"),))

    assert "retention.my task|v 2.delta" in flat_metrics(report)


def test_every_metric_is_a_finite_float(make_report: MakeReport) -> None:
    report = make_report(training={"learning_rate": math.nan, "num_epochs": True, "unfreeze_rank_ratio": "auto"})

    numbers = flat_metrics(report)

    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
    assert not {"learning_rate", "num_epochs", "unfreeze_rank_ratio"} & set(numbers)


def test_metrics_have_each_earlier_set_and_their_pool(make_report: MakeReport, pool_fields: dict[str, Any]) -> None:
    numbers = flat_metrics(make_report(**pool_fields))

    assert {name: value for name, value in numbers.items() if name.startswith("pool.earlier_holdouts_acc")} == {
        "pool.earlier_holdouts_acc.base": 0.96,
        "pool.earlier_holdouts_acc.tuned": 0.96,
        "pool.earlier_holdouts_acc.delta": 0.0,
        "pool.earlier_holdouts_acc.best": 0.98,
    }
    assert {"retention.holdout_v0001.tuned", "retention.holdout_v0003.tuned"} <= numbers.keys()


def test_metrics_of_a_chain_have_what_was_lost_since_the_best(
    make_report: MakeReport, chain_fields: dict[str, Any]
) -> None:
    alone, chained = flat_metrics(make_report()), flat_metrics(make_report(**chain_fields))

    assert {name: chained[name] for name in chained.keys() - alone.keys()} == {
        "cumulative_forgetting": 0.05,
        "cumulative_forgetting_upper": 0.0875,
        "origin_forgetting": 0.08,
        "retention.capitals[eu].best": 1.0,
        "retention.holdout_v0002.best": 0.96,
    }
