from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from osft.errors import EvaluationError
from osft.evaluation.statistics import (
    PairedScores,
    Uncertainty,
    bca_interval,
    bootstrap_means,
    holm,
    loss_upper_bound,
    mcnemar_p_value,
    paired_proportion_interval,
    paired_uncertainty,
    permutation_p_value,
    proportion_loss_draws,
)

Draw = Callable[[np.random.Generator, int], PairedScores]


def paired(base: np.ndarray, tuned: np.ndarray, weights: np.ndarray | None = None, **fields: object) -> PairedScores:
    return PairedScores(
        base=base,
        tuned=tuned,
        weights=np.ones(len(base)) if weights is None else weights,
        **fields,  # type: ignore[arg-type]
    )


def found(scores: PairedScores, *, relative: bool = False, seed: int = 0) -> Uncertainty:
    uncertainty = paired_uncertainty(scores, relative=relative, seeds=(seed,))
    assert uncertainty is not None
    return uncertainty


def right_or_wrong(p_lost: float, p_gained: float) -> Draw:
    def draw(rng: np.random.Generator, num_documents: int) -> PairedScores:
        kinds = rng.choice(3, size=num_documents, p=[p_lost, p_gained, 1 - p_lost - p_gained])
        base = np.where(kinds == 2, rng.integers(2, size=num_documents), kinds == 0).astype(float)
        return paired(base, np.where(kinds == 2, base, kinds == 1).astype(float))

    return draw


def graded(p_lost: float, p_gained: float) -> Draw:
    """F1 as it comes: some documents change, each by something else; losses of 0.35 and gains of 0.25 on average."""

    def draw(rng: np.random.Generator, num_documents: int) -> PairedScores:
        kinds = rng.choice(3, size=num_documents, p=[p_lost, p_gained, 1 - p_lost - p_gained])
        loss = np.choose(kinds, [rng.uniform(0.1, 0.6, num_documents), -rng.uniform(0.1, 0.4, num_documents), 0.0])
        return paired(np.full(num_documents, 0.6), 0.6 - loss)

    return draw


def perplexity(growth: float) -> Draw:
    def draw(rng: np.random.Generator, num_documents: int) -> PairedScores:
        words = rng.integers(50, 500, num_documents).astype(float)
        base = -words * rng.normal(2.3, 0.2, num_documents)
        tuned = base - words * rng.normal(np.log1p(growth), 0.1, num_documents)
        return paired(base, tuned, words, aggregation="perplexity", higher_is_better=False)

    return draw


def evaluations(draw: Draw, num_documents: int, *, count: int, relative: bool = False) -> list[Uncertainty]:
    rng = np.random.default_rng(11)
    return [found(draw(rng, num_documents), relative=relative, seed=number) for number in range(count)]


@given(st.integers(1, 2000), st.data())
def test_interval_of_proportions_holds_the_observed_change_and_mirrors(num_documents: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, num_documents))
    gained = data.draw(st.integers(0, num_documents - lost))

    interval = paired_proportion_interval(lost=lost, gained=gained, num_documents=num_documents)
    mirrored = paired_proportion_interval(lost=gained, gained=lost, num_documents=num_documents)

    assert -1 <= interval.low <= (gained - lost) / num_documents <= interval.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


def test_interval_of_proportions_stays_open_when_no_document_changed() -> None:
    interval = paired_proportion_interval(lost=0, gained=0, num_documents=9)

    assert interval.low == pytest.approx(-interval.high)
    assert interval.high > 0.2


@pytest.mark.parametrize(
    ("draw", "num_documents", "truth"),
    [
        (right_or_wrong(0.12, 0.05), 150, -0.07),
        (right_or_wrong(0.2, 0.2), 100, 0.0),
        (right_or_wrong(0.05, 0.03), 1000, -0.02),
        (graded(0.3, 0.1), 40, -0.08),
        (graded(0.25, 0.35), 60, 0.0),
    ],
    ids=["lost", "even", "many", "graded", "graded-even"],
)
def test_interval_covers_the_truth_in_93_to_97_of_100_evaluations(draw: Draw, num_documents: int, truth: float) -> None:
    intervals = [one.interval for one in evaluations(draw, num_documents, count=200)]

    # The standard error of 200 evaluations is 1.5%, so even an exact method needs the seed to stay fixed.
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in intervals]) <= 0.97


def test_interval_of_proportions_errs_to_the_wide_side_where_few_documents_change() -> None:
    intervals = [one.interval for one in evaluations(right_or_wrong(0.01, 0.01), 100, count=500)]

    assert np.mean([one.low <= 0 <= one.high for one in intervals]) >= 0.97


@pytest.mark.parametrize(
    ("draw", "num_documents", "loss"),
    [
        (right_or_wrong(0.27, 0.0), 9, 0.27),
        (right_or_wrong(0.08, 0.0), 30, 0.08),
        (right_or_wrong(0.13, 0.0), 30, 0.13),
        (right_or_wrong(0.1, 0.02), 100, 0.08),
        (right_or_wrong(0.5, 0.05), 30, 0.45),
        (graded(0.3, 0.1), 20, 0.08),
        (perplexity(0.04), 20, 0.04),
    ],
)
def test_upper_bound_of_a_loss_is_no_less_than_the_truth(draw: Draw, num_documents: int, loss: float) -> None:
    bounds = [loss_upper_bound(one.loss_draws) for one in evaluations(draw, num_documents, count=200, relative=True)]

    # Three standard errors of 200 evaluations below 95%.
    assert np.mean([bound >= loss for bound in bounds]) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_bootstrap_agrees_with_scipys() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(400)
    scores = paired(base, base - rng.exponential(0.1, 400) + 0.05)

    means, improvements = bootstrap_means(scores, np.random.default_rng(0))
    interval = bca_interval(scores, improvements)

    expected = stats.bootstrap((scores.improvements,), np.mean, method="BCa", rng=1).confidence_interval
    # Two bootstraps of 9,999 draws differ by some hundredths of the standard error, 0.005.
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=5e-4)
    assert means.mean() == pytest.approx(base.mean(), abs=5e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=10).filter(any))
def test_permutation_test_of_few_documents_is_scipys_exact_one(changes: list[int]) -> None:
    improvements = np.array(changes) / 8

    p_value = permutation_p_value(improvements, np.random.default_rng(0))

    expected = stats.permutation_test(
        (improvements, np.zeros(len(changes))),
        lambda first, second, axis: (first - second).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert p_value == pytest.approx(expected.pvalue)


def test_permutation_test_of_many_documents_agrees_with_the_t_test() -> None:
    improvements = np.random.default_rng(5).normal(0.02, 0.2, 500)

    p_value = permutation_p_value(improvements, np.random.default_rng(0))

    # 9,999 swaps know a p-value of 1% to a tenth of it; the t-test is nearly exact for normal changes.
    assert p_value == pytest.approx(stats.ttest_1samp(improvements, 0).pvalue, rel=0.4)


def test_permutation_test_never_gives_zero() -> None:
    assert permutation_p_value(np.full(50, 0.5), np.random.default_rng(0)) == pytest.approx(1e-4)


@pytest.mark.parametrize(("lost", "gained", "p_value"), [(0, 0, 1.0), (3, 1, 0.625), (5, 0, 0.0625), (0, 5, 0.0625)])
def test_mcnemars_test_is_that_of_a_coin(lost: int, gained: int, p_value: float) -> None:
    # By hand: 2 * (1 + 4) / 2^4, and 2 / 2^5.
    assert mcnemar_p_value(lost=lost, gained=gained) == pytest.approx(p_value)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_test_is_the_permutation_test_of_right_or_wrong_scores(lost: int, gained: int) -> None:
    changes = np.array([-1.0] * lost + [1.0] * gained)

    p_value = permutation_p_value(changes, np.random.default_rng(0))

    # 9,999 swaps: five standard errors of a share.
    assert p_value == pytest.approx(mcnemar_p_value(lost=lost, gained=gained), abs=0.025)


def test_holm_is_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_and_lowers_no_p_value(p_values: list[float]) -> None:
    adjusted = holm(p_values)

    assert all(raw <= one <= 1 for raw, one in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


@settings(max_examples=30)
@given(st.integers(1, 300))
def test_bound_of_unchanged_documents_is_clopper_and_pearsons(num_documents: int) -> None:
    draws = proportion_loss_draws(lost=0, gained=0, num_documents=num_documents, rng=np.random.default_rng(0))

    # Draws know the quantile to 1.5% of itself (9,999 of an exponential); four times that.
    assert loss_upper_bound(draws) == pytest.approx(1 - 0.05 ** (1 / num_documents), rel=0.06)


@settings(max_examples=50)
@given(st.integers(1, 500), st.data())
def test_bound_of_a_loss_is_no_less_than_the_loss(num_documents: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, num_documents))
    gained = data.draw(st.integers(0, num_documents - lost))

    draws = proportion_loss_draws(lost=lost, gained=gained, num_documents=num_documents, rng=np.random.default_rng(0))

    assert (lost - gained) / num_documents <= loss_upper_bound(draws) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.sampled_from([-0.25, 0.0, 0.25]))
def test_documents_that_all_change_alike_do_not_prove_that_all_would(num_documents: int, change: float) -> None:
    base = np.linspace(0.3, 0.6, num_documents)

    uncertainty = found(paired(base, base + change))

    assert -1 < uncertainty.interval.low < change < uncertainty.interval.high < 1
    unseen = 1 - 0.05 ** (1 / num_documents)
    assert loss_upper_bound(uncertainty.loss_draws) == pytest.approx(
        max(0.0, -change + unseen * (1 + change)), rel=0.06, abs=0.03
    )


@pytest.mark.parametrize("aggregation", ["perplexity", "bits"])
@pytest.mark.parametrize("num_documents", [2, 20, 62])
def test_log_likelihoods_that_are_equal_in_every_digit_are_the_same_models(
    num_documents: int, aggregation: str
) -> None:
    words = np.random.default_rng(0).integers(50, 500, num_documents).astype(float)
    scores = -words * np.random.default_rng(1).normal(2.9, 0.35, num_documents)
    same = paired(scores, scores.copy(), words, aggregation=aggregation, higher_is_better=False)

    uncertainty = found(same, relative=True)

    assert (uncertainty.interval.low, uncertainty.interval.high, uncertainty.p_value) == (0.0, 0.0, 1.0)
    assert loss_upper_bound(uncertainty.loss_draws) == 0.0


def test_log_likelihoods_that_are_nearly_equal_have_nearly_no_bound() -> None:
    scores = np.array([-20.0, -30.0, -45.0])
    tuned = scores + np.array([1e-6, -2e-6, 3e-6])

    uncertainty = found(
        paired(scores, tuned, np.full(3, 10.0), aggregation="perplexity", higher_is_better=False), relative=True
    )

    assert 0 < loss_upper_bound(uncertainty.loss_draws) < 1e-5


@pytest.mark.parametrize("num_documents", [3, 62])
def test_coarse_scores_that_are_equal_do_not_prove_that_nothing_was_lost(num_documents: int) -> None:
    all_right = np.full(num_documents, 100.0)

    bound = loss_upper_bound(found(paired(all_right, all_right), relative=True).loss_draws)

    # As for right-or-wrong scores: each document may have lost all.
    assert bound == pytest.approx(1 - 0.05 ** (1 / num_documents), rel=0.06)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_draws_that_are_not_finite_bound_nothing(broken: float) -> None:
    draws = np.array([0.01, broken, 0.02])

    with pytest.raises(EvaluationError, match="1 of 3 draws of a loss are not finite, so nothing bounds it"):
        loss_upper_bound(draws)


@pytest.mark.parametrize("score", [-3.5, 7.0])
def test_one_document_of_a_score_without_limits_says_nothing(score: float) -> None:
    one = paired(np.array([score]), np.array([score + 0.1]))

    assert paired_uncertainty(one, relative=True, seeds=(0,)) is None


def test_one_document_of_a_graded_score_rules_out_next_to_nothing() -> None:
    uncertainty = found(paired(np.array([0.4]), np.array([0.3])))

    assert uncertainty.interval.low < -0.95
    assert uncertainty.p_value == 1.0
    assert loss_upper_bound(uncertainty.loss_draws) > 0.9


def test_interval_of_a_perplexity_is_in_its_own_unit_and_the_bound_in_shares() -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(10, 90, 500).astype(float)
    base = -2.0 * words
    tuned = base - words * rng.normal(0.05, 0.05, 500)

    uncertainty = found(paired(base, tuned, words, aggregation="perplexity", higher_is_better=False), relative=True)

    before, after = np.exp(2.0), np.exp(-tuned.sum() / words.sum())
    assert uncertainty.interval.low < before - after < uncertainty.interval.high < 0
    assert after / before - 1 < loss_upper_bound(uncertainty.loss_draws) < 0.07


@pytest.mark.parametrize(("aggregation", "worse"), [("mean", 0.4), ("bits", -0.4), ("perplexity", -0.4)])
def test_lower_is_better_turns_the_sign(aggregation: str, worse: float) -> None:
    base = np.random.default_rng(0).normal(3.0, 0.5, 50)
    noise = np.random.default_rng(1).normal(0.0, 0.1, 50)

    scores = paired(base, base + worse + noise, aggregation=aggregation, higher_is_better=False)

    assert found(scores).interval.high < 0
    assert scores.improvements.mean() < 0


def test_draws_of_a_model_beyond_all_measure_stay_numbers() -> None:
    base = np.array([-100.0, -300.0])

    uncertainty = found(paired(base, base * 2.2, aggregation="perplexity", higher_is_better=False), relative=True)

    assert np.isfinite([uncertainty.interval.low, uncertainty.interval.high]).all()
    assert np.isfinite(uncertainty.loss_draws).all()


def test_draws_are_the_same_for_the_same_seed() -> None:
    scores = graded(0.3, 0.1)(np.random.default_rng(0), 40)

    first, second, other = (found(scores, seed=seed) for seed in (5, 5, 6))

    assert first.interval == second.interval
    assert np.array_equal(first.loss_draws, second.loss_draws)
    assert not np.array_equal(first.loss_draws, other.loss_draws)
