from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.errors import EvaluationError
from osft.evaluation.forgetting import (
    ComparedTask,
    TaskComparison,
    TaskLabel,
    compare_scores,
    compare_values,
    has_bound,
    join,
)
from osft.evaluation.statistics import PairedScores


def label(kind: str = "retention", *, task: str = "facts", **fields: object) -> TaskLabel:
    return TaskLabel(task=task, kind=kind, metric="acc", **fields)  # type: ignore[arg-type]


def compare_documents(one: TaskLabel, base: np.ndarray, tuned: np.ndarray) -> TaskComparison:
    return compare_scores(one, PairedScores(base=base, tuned=tuned, weights=np.ones(len(base))), seed=0).comparison


def changed(base: float, tuned: float, kind: str = "retention", **fields: object) -> TaskComparison:
    return compare_values(label(kind, **fields), base=base, tuned=tuned, num_documents=10)


def unbounded(*comparisons: TaskComparison) -> list[ComparedTask]:
    return [ComparedTask(comparison=one, loss_draws=None) for one in comparisons]


def flipped(
    num_documents: int, *, lost: int = 0, gained: int = 0, task: str = "facts", kind: str = "retention"
) -> ComparedTask:
    """A task of right-or-wrong scores, half of them right before."""
    base = np.arange(num_documents) % 2 * 1.0
    tuned = base.copy()
    tuned[np.flatnonzero(base == 1)[:lost]] = 0
    tuned[np.flatnonzero(base == 0)[:gained]] = 1
    scores = PairedScores(base=base, tuned=tuned, weights=np.ones(num_documents))
    return compare_scores(label(kind, task=task), scores, seed=0)


def test_right_or_wrong_scores_give_means_flips_interval_and_mcnemars_test() -> None:
    base = np.array([1.0] * 8 + [0.0] * 2)
    tuned = np.array([0.0] * 3 + [1.0] * 5 + [1.0, 0.0])

    comparison = compare_documents(label(), base, tuned)

    assert (comparison.base, comparison.tuned, comparison.n) == (0.8, 0.6, 10)
    assert comparison.delta == pytest.approx(-0.2)
    assert (comparison.lost, comparison.gained) == (3, 1)
    # By hand: p = 2/12, q = 4/12, half width 1.959964 * sqrt((6/12 - (2/12)^2) / 12); p-value 2 * (1 + 4) / 2^4.
    assert comparison.ci_low == pytest.approx(-1 / 6 - 0.388804, abs=1e-5)
    assert comparison.ci_high == pytest.approx(-1 / 6 + 0.388804, abs=1e-5)
    assert comparison.p_value == pytest.approx(0.625)


def test_graded_scores_have_an_interval_and_no_flips() -> None:
    base, tuned = np.array([0.5, 0.25, 0.75, 0.3]), np.array([0.25, 0.2, 0.5, 0.2])

    comparison = compare_documents(label(), base, tuned)

    assert comparison.ci_low is not None
    assert comparison.ci_high is not None
    assert comparison.ci_low < comparison.delta < comparison.ci_high
    assert comparison.lost is None
    assert comparison.p_value == pytest.approx(2 / 2**4)


def test_sign_is_turned_where_lower_is_better() -> None:
    base, tuned = np.array([0.5, 0.25, 0.75, 0.3]), np.array([0.25, 0.2, 0.5, 0.2])

    comparison = compare_documents(label(higher_is_better=False), base, tuned)

    assert comparison.delta == pytest.approx(0.1625)
    assert comparison.ci_low is not None
    assert comparison.ci_high is not None
    assert comparison.ci_low < comparison.delta < comparison.ci_high


def test_score_that_cannot_be_taken_apart_has_a_change_and_no_interval() -> None:
    comparison = changed(10.0, 10.5, higher_is_better=False)

    assert comparison.delta == pytest.approx(-0.5)
    assert (comparison.ci_low, comparison.p_value, comparison.loss_upper) == (None, None, None)
    assert comparison.is_relative
    assert comparison.change_share == pytest.approx(-0.05)
    assert not comparison.is_significant


def test_one_document_of_a_score_without_limits_is_left_unbounded() -> None:
    compared = compare_scores(
        label(), PairedScores(base=np.array([-4.0]), tuned=np.array([-5.0]), weights=np.ones(1)), seed=0
    )

    outcome = join([compared])

    assert (compared.comparison.ci_low, compared.loss_draws) == (None, None)
    assert compared.comparison.has_too_few_documents
    assert (outcome.forgetting, outcome.forgetting_upper) == (0.25, 0.25)
    assert (outcome.unbounded_tasks, outcome.too_few_documents) == ((), ("facts",))
    assert not has_bound(outcome.tasks)


def test_one_document_of_a_score_within_limits_is_bounded_by_them() -> None:
    outcome = join([flipped(1)])

    assert (outcome.unbounded_tasks, outcome.too_few_documents) == ((), ())
    assert outcome.forgetting_upper == pytest.approx(0.95, abs=0.01)
    assert has_bound(outcome.tasks)


@pytest.mark.parametrize(
    ("fields", "base", "tuned", "share"),
    [
        ({}, 0.0, 40.0, 1.0),
        ({}, 0.0, -40.0, -1.0),
        ({"higher_is_better": False}, 0.0, 0.2, -1.0),
        ({"higher_is_better": False}, 0.0, 0.0, 0.0),
    ],
)
def test_relative_change_from_zero_is_everything(
    fields: dict[str, object], base: float, tuned: float, share: float
) -> None:
    assert changed(base, tuned, **fields).change_share == share


@pytest.mark.parametrize("spread", [0.0, 30.0])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_documents_that_start_from_zero_have_a_finite_interval_and_bound(spread: float, higher_is_better: bool) -> None:
    tuned = 50.0 + np.linspace(-spread, spread, 20)
    scores = PairedScores(base=np.zeros(20), tuned=tuned, weights=np.ones(20))

    compared = compare_scores(label(higher_is_better=higher_is_better), scores, seed=0)

    assert compared.comparison.change_share == (1.0 if higher_is_better else -1.0)
    assert compared.loss_draws is not None
    assert np.isfinite([compared.comparison.ci_low, compared.comparison.ci_high, *compared.loss_draws]).all()
    assert compared.comparison.loss_upper is not None
    assert compared.comparison.loss_upper >= (0.0 if higher_is_better else 1.0)


def test_documents_around_zero_have_a_finite_bound() -> None:
    comparison = compare_documents(label(), np.array([-1.0, 1.0]), np.array([3.0, 3.0]))

    assert comparison.change_share == 1.0
    assert comparison.loss_upper is not None
    assert np.isfinite(comparison.loss_upper)


@pytest.mark.parametrize("edge", [1.0, 1.0001])
def test_share_of_a_score_where_lower_is_better_has_no_jump(edge: float) -> None:
    comparison = changed(0.5, edge, higher_is_better=False)

    assert comparison.is_relative
    assert comparison.change_share == pytest.approx(-1.0, abs=0.001)


def test_errors_are_bounded_relative_to_the_bases() -> None:
    base, tuned = np.zeros(1_000), np.zeros(1_000)
    base[:100], tuned[:120] = 1, 1

    comparison = compare_documents(label(higher_is_better=False), base, tuned)

    assert comparison.change_share == pytest.approx(-0.2)
    assert comparison.loss_upper is not None
    # Twenty of a thousand more, and at most thirty or so, of a hundred.
    assert 0.25 < comparison.loss_upper < 0.35


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"kind": "target"}, False),
        ({"higher_is_better": False}, False),
    ],
)
def test_base_that_answers_nothing_right_has_nothing_to_lose(fields: dict[str, str], expected: bool) -> None:
    assert changed(0.0, 0.0, **fields).has_nothing_to_lose == expected
    assert not changed(0.01, 0.0, **fields).has_nothing_to_lose


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_score_that_is_not_finite_is_an_error(score: float) -> None:
    with pytest.raises(EvaluationError, match="task 'facts', document 1: the tuned model's score is"):
        compare_documents(label(), np.array([1.0, 1.0]), np.array([1.0, score]))


@pytest.mark.parametrize(("base", "tuned"), [(2, 1), (0, 0)])
def test_documents_that_do_not_pair_are_an_error(base: int, tuned: int) -> None:
    with pytest.raises(EvaluationError, match=f"{base} documents of the base model and {tuned} of the tuned one"):
        compare_documents(label(), np.ones(base), np.ones(tuned))


def test_forgetting_counts_losses_and_no_gains_on_retention_tasks_only() -> None:
    outcome = join(unbounded(changed(0.9, 0.8), changed(0.5, 0.7), changed(0.9, 0.1, "target")))

    assert outcome.forgetting == pytest.approx(0.05)
    assert outcome.target_gain == pytest.approx(-0.8)


def test_backward_transfer_is_signed() -> None:
    outcome = join(unbounded(changed(0.9, 0.8), changed(0.5, 0.7), changed(0.9, 0.1, "target")))

    assert outcome.backward_transfer == pytest.approx(0.05)


def test_average_accuracy_is_over_all_scores_that_are_accuracies() -> None:
    perplexity, error_rate = changed(12.0, 14.0, higher_is_better=False), changed(0.5, 0.4, higher_is_better=False)

    outcome = join(unbounded(changed(0.9, 0.8), changed(0.1, 0.6, "target"), perplexity, error_rate))
    without = join(unbounded(perplexity))

    assert outcome.average_accuracy_base == pytest.approx(0.5)
    assert outcome.average_accuracy_tuned == pytest.approx(0.7)
    assert (without.average_accuracy_base, without.average_accuracy_tuned) == (None, None)


def test_gain_is_not_made_up_without_a_target_task() -> None:
    assert join(unbounded(changed(0.9, 0.8))).target_gain is None


def test_forgetting_without_retention_task_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="there is no retention task"):
        join(unbounded(changed(0.9, 0.1, "target")))


def test_nine_unchanged_documents_do_not_prove_that_nothing_is_forgotten() -> None:
    outcome = join([flipped(9)])

    assert outcome.forgetting == 0
    # Rule of three, exactly: 1 - 0.05^(1/9) = 0.283.
    assert outcome.forgetting_upper == pytest.approx(0.283, abs=0.02)
    assert outcome.unbounded_tasks == ()


def test_more_documents_bring_the_bound_down() -> None:
    bounds = [join([flipped(number)]).forgetting_upper for number in (10, 100, 1_000, 10_000)]

    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.001


def test_gains_do_not_make_up_for_losses_in_the_bound() -> None:
    loser = flipped(1_000, lost=100, task="one")

    alone, beside = join([loser]), join([loser, flipped(1_000, gained=400, task="two")])

    assert beside.forgetting_upper == pytest.approx(alone.forgetting_upper / 2, abs=0.001)


def test_task_without_interval_counts_in_the_bound_with_its_value() -> None:
    outcome = join([flipped(10_000, task="known"), *unbounded(changed(0.9, 0.7, task="bleu"))])

    assert outcome.unbounded_tasks == ("bleu",)
    assert outcome.forgetting == pytest.approx(0.1)
    assert outcome.forgetting_upper == pytest.approx(0.1, abs=0.001)


def test_significance_allows_for_the_number_of_tasks() -> None:
    # McNemar's p-value of 7 lost and none gained is 2 / 2^7 = 0.0156: four tasks of it are adjusted to 0.0625.
    one = join([flipped(100, lost=7)])
    four = join([flipped(100, lost=7, task=f"task {number}") for number in range(4)])

    assert one.tasks[0].p_adjusted == pytest.approx(0.015625)
    assert one.tasks[0].is_significant
    assert [task.p_adjusted for task in four.tasks] == pytest.approx([0.0625] * 4)
    assert not any(task.is_significant for task in four.tasks)


def test_task_without_a_test_is_left_out_of_the_adjustment() -> None:
    outcome = join([*unbounded(changed(0.5, 0.4, task="bleu")), flipped(100, lost=7)])

    assert [task.p_adjusted for task in outcome.tasks] == [None, pytest.approx(0.015625)]


def test_result_of_a_task_does_not_depend_on_the_others() -> None:
    one, other = flipped(50, lost=3, task="one"), flipped(50, lost=3, task="other")

    assert one.comparison.loss_upper != other.comparison.loss_upper
    assert flipped(50, lost=3, task="one").comparison == one.comparison


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 200), st.data()), min_size=1, max_size=4))
def test_bound_is_no_less_than_forgetting(sizes: list[tuple[int, st.DataObject]]) -> None:
    tasks = []
    for number, (num_documents, data) in enumerate(sizes):
        lost, gained = (data.draw(st.integers(0, num_documents // 2)) for _ in range(2))
        tasks.append(flipped(num_documents, lost=lost, gained=gained, task=str(number)))

    outcome = join(tasks)

    assert 0 <= outcome.forgetting <= outcome.forgetting_upper <= 1
    assert outcome.backward_transfer >= -outcome.forgetting - 1e-12


@pytest.mark.parametrize(
    "rates",
    [
        [(0.0, 0.0)] * 3,
        [(0.1, 0.1)] * 3,
        [(0.05, 0.0)] * 1,
        [(0.1, 0.02)] * 3,
        [(0.25, 0.05)] * 5,
        [(0.05, 0.15), (0.1, 0.04), (0.02, 0.02), (0.0, 0.1)],
    ],
    ids=["nothing", "even", "rare", "three", "five", "mixed"],
)
def test_bound_is_no_less_than_the_truth_in_95_of_100_evaluations(rates: list[tuple[float, float]]) -> None:
    truth = np.mean([max(0.0, p_lost - p_gained) for p_lost, p_gained in rates])
    rng = np.random.default_rng(17)
    count, num_documents = 150, 60

    bounds = []
    for _ in range(count):
        flips = [rng.multinomial(num_documents, [p, q, 1 - p - q]) for p, q in rates]
        # Half the documents can be lost and half gained, which these rates never reach.
        tasks = [
            flipped(num_documents, lost=int(f[0]), gained=int(f[1]), task=str(number)) for number, f in enumerate(flips)
        ]
        bounds.append(join(tasks).forgetting_upper)

    # Three standard errors of 150 evaluations below 95%.
    assert np.mean(np.array(bounds) >= truth) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / count)


def test_bound_over_scores_of_all_kinds_is_no_less_than_the_truth() -> None:
    rng = np.random.default_rng(23)
    words, count = rng.integers(50, 500, 25).astype(float), 80

    bounds = []
    for seed in range(count):
        f1 = rng.uniform(0.5, 0.9, 25)
        likelihood = -words * rng.normal(2.3, 0.2, 25)
        graded = PairedScores(base=f1, tuned=f1 - rng.uniform(-0.2, 0.4, 25), weights=np.ones(25))
        prose = PairedScores(
            base=likelihood,
            tuned=likelihood - words * rng.normal(np.log(1.1), 0.1, 25),
            weights=words,
            aggregation="perplexity",
        )
        tasks = [
            compare_scores(label(task="f1"), graded, seed=seed),
            compare_scores(label(task="prose", higher_is_better=False), prose, seed=seed),
        ]
        bounds.append(join(tasks).forgetting_upper)

    # Both lose a tenth: 0.1 of F1, and a perplexity ten percent up.
    assert np.mean(np.array(bounds) >= 0.1) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / count)


def test_comparison_says_how_the_user_called_the_task() -> None:
    named = replace(label(), asked_as="tag")

    assert compare_documents(named, np.ones(3), np.ones(3)).asked_as == "tag"
