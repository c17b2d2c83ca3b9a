from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.errors import EvaluationError
from osft.evaluation.forgetting import (
    TaskComparison,
    TaskLabel,
    bootstrap_interval,
    compare_documents,
    compare_values,
    judge,
    mean_forgetting,
    mean_target_gain,
    paired_proportion_interval,
)
from osft.evaluation.report import ForgettingReport


def label(kind: str = "retention", *, higher_is_better: bool = True) -> TaskLabel:
    return TaskLabel(task="facts", kind=kind, metric="acc", higher_is_better=higher_is_better)


def changed(base: float, tuned: float, kind: str = "retention", **fields: bool) -> TaskComparison:
    return compare_values(label(kind, **fields), base=base, tuned=tuned, num_documents=10)


def test_binary_scores_give_means_flips_and_bonett_prices_interval() -> None:
    base = np.array([1.0] * 8 + [0.0] * 2)
    tuned = np.array([0.0] * 3 + [1.0] * 5 + [1.0, 0.0])

    comparison = compare_documents(label(), base, tuned, seed=0)

    assert (comparison.base, comparison.tuned, comparison.n) == (0.8, 0.6, 10)
    assert comparison.delta == pytest.approx(-0.2)
    assert (comparison.lost, comparison.gained) == (3, 1)
    # By hand: p = 2/12, q = 4/12, half width 1.959964 * sqrt((6/12 - (2/12)^2) / 12).
    assert comparison.ci_low == pytest.approx(-1 / 6 - 0.388804, abs=1e-5)
    assert comparison.ci_high == pytest.approx(-1 / 6 + 0.388804, abs=1e-5)


def test_interval_stays_open_when_no_document_changed() -> None:
    interval = paired_proportion_interval(lost=0, gained=0, num_documents=9)

    assert interval.low == pytest.approx(-interval.high)
    assert interval.high > 0.2


@given(st.integers(1, 2000), st.data())
def test_interval_of_proportions_holds_the_observed_change_and_mirrors(num_documents: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, num_documents))
    gained = data.draw(st.integers(0, num_documents - lost))

    interval = paired_proportion_interval(lost=lost, gained=gained, num_documents=num_documents)
    mirrored = paired_proportion_interval(lost=gained, gained=lost, num_documents=num_documents)

    assert -1 <= interval.low <= (gained - lost) / num_documents <= interval.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


@pytest.mark.parametrize(
    ("p_lost", "p_gained", "n"), [(0.1, 0.02, 30), (0.05, 0.05, 60), (0.3, 0.1, 40), (0.08, 0.01, 300)]
)
def test_interval_of_proportions_covers_the_truth_as_often_as_it_says(p_lost: float, p_gained: float, n: int) -> None:
    rng = np.random.default_rng(7)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=2_000)

    intervals = [paired_proportion_interval(lost=int(d[0]), gained=int(d[1]), num_documents=n) for d in draws]

    coverage = np.mean([one.low <= p_gained - p_lost <= one.high for one in intervals])
    # 2,000 draws have a standard error of 0.5%; the adjusted Wald interval is known to err to the wide side.
    assert 0.935 <= coverage <= 0.99


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)

    intervals = [bootstrap_interval(rng.normal(-0.1, 0.5, size=60), seed=1) for _ in range(200)]

    coverage = np.mean([one is not None and one.low <= -0.1 <= one.high for one in intervals])
    assert 0.90 <= coverage <= 0.985


def test_bootstrap_interval_is_the_same_for_the_same_seed() -> None:
    differences = np.random.default_rng(0).normal(size=40)

    assert bootstrap_interval(differences, seed=5) == bootstrap_interval(differences, seed=5)


def test_one_document_with_a_graded_score_has_no_interval() -> None:
    comparison = compare_documents(label(), np.array([0.4]), np.array([0.3]), seed=0)

    assert comparison.delta == pytest.approx(-0.1)
    assert comparison.ci_low is None
    assert comparison.ci_high is None


def test_graded_scores_that_all_change_alike_have_that_change_as_interval() -> None:
    comparison = compare_documents(label(), np.array([0.2, 0.4, 0.6]), np.array([0.3, 0.5, 0.7]), seed=0)

    assert comparison.ci_low == pytest.approx(0.1)
    assert comparison.ci_high == pytest.approx(0.1)
    assert comparison.lost is None


def test_sign_is_turned_where_lower_is_better() -> None:
    base, tuned = np.array([0.5, 0.25, 0.75, 0.3]), np.array([0.25, 0.2, 0.5, 0.2])

    comparison = compare_documents(label(higher_is_better=False), base, tuned, seed=0)

    assert comparison.delta > 0
    assert comparison.ci_low is not None
    assert 0 < comparison.ci_low <= comparison.delta <= comparison.ci_high


def test_aggregated_score_has_a_change_and_no_interval() -> None:
    comparison = changed(10.0, 10.5, higher_is_better=False)

    assert comparison.delta == pytest.approx(-0.5)
    assert comparison.ci_low is None
    assert comparison.is_relative
    assert comparison.change_share == pytest.approx(-0.05)


def test_relative_change_from_zero_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="'facts': acc is 0 for the base model"):
        _ = changed(0.0, 3.0).change_share


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_score_that_is_not_finite_is_an_error(score: float) -> None:
    with pytest.raises(EvaluationError, match="task 'facts', document 1: the tuned model's score is"):
        compare_documents(label(), np.array([1.0, 1.0]), np.array([1.0, score]), seed=0)


def test_different_numbers_of_documents_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="2 documents of the base model and 1 of the tuned one"):
        compare_documents(label(), np.array([1.0, 1.0]), np.array([1.0]), seed=0)


def test_forgetting_counts_losses_and_no_gains_on_retention_tasks_only() -> None:
    comparisons = [changed(0.9, 0.8), changed(0.5, 0.7), changed(0.9, 0.1, "target")]

    assert mean_forgetting(comparisons) == pytest.approx(0.05)
    assert mean_target_gain(comparisons) == pytest.approx(-0.8)


def test_forgetting_without_retention_task_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="there is no retention task"):
        mean_forgetting([changed(0.9, 0.1, "target")])


def test_gate_passes_exactly_at_its_limits() -> None:
    comparisons = [changed(0.95, 0.90), changed(0.1, 0.4, "target")]

    verdict = judge(comparisons, max_forgetting=0.05, min_target_gain=0.3)

    assert verdict.passed
    assert verdict.reasons == (
        "Forgetting is 5.0 points, within the limit of 5.0 points.",
        "The gain on the new data is 30.0 points, no less than the 30.0 points asked for.",
    )


@pytest.mark.parametrize(
    ("tuned", "target", "reason"),
    [
        (0.8, 0.9, "Forgetting is 15.0 points, above the limit of 5.0 points."),
        (0.95, 0.2, "The gain on the new data is 10.0 points, below the 30.0 points asked for."),
    ],
)
def test_gate_fails_and_says_why(tuned: float, target: float, reason: str) -> None:
    verdict = judge([changed(0.95, tuned), changed(0.1, target, "target")], max_forgetting=0.05, min_target_gain=0.3)

    assert not verdict.passed
    assert reason in verdict.reasons


def test_gain_is_not_made_up_without_a_target_task() -> None:
    verdict = judge([changed(0.95, 0.95)], max_forgetting=0.05, min_target_gain=0.0)

    assert verdict.passed
    assert verdict.target_gain is None
    assert "was not measured" in verdict.reasons[1]


def test_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    report = ForgettingReport(
        tasks=(compare_documents(label(), np.array([1.0, 0.0]), np.array([1.0, 1.0]), seed=0),),
        forgetting=0.0,
        target_gain=None,
        passed=True,
        reasons=("because",),
        settings={"seed": 42},
        versions={"torch": "2"},
    )

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_file_that_is_no_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "forgetting.json").write_text("{}")

    with pytest.raises(EvaluationError, match="no report of an evaluation"):
        ForgettingReport.load(tmp_path / "forgetting.json")
