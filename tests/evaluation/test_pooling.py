"""What earlier versions held out counts as one task."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.evaluation.config import EvaluationConfig
from osft.evaluation.cumulative import compare_with_chain
from osft.evaluation.forgetting import MIN_POOLED_DOCUMENTS, Outcome, TaskLabel, has_bound, join, joined, mean_loss
from osft.evaluation.gate import Verdict, judge
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pooling import pool_earlier_holdouts
from osft.evaluation.statistics import PairedScores, Scores

BENCHMARKS = ("arc_easy", "hellaswag")


def answers(num_documents: int, right: int | None = None) -> Scores:
    """Right answers first; four of five if not said."""
    return (np.arange(num_documents) < (num_documents * 4 // 5 if right is None else right)).astype(np.float64)


def task(
    name: str, base: Sequence[float] | Scores, tuned: Sequence[float] | Scores, *, is_earlier_holdout: bool = False
) -> PairedTask:
    before, after = (np.asarray(scores, dtype=np.float64) for scores in (base, tuned))
    return PairedTask(
        label=TaskLabel(task=name, kind="retention", metric="acc"),
        scores=PairedScores(base=before, tuned=after, weights=np.ones(len(before))),
        base=float(before.mean()),
        tuned=float(after.mean()),
        num_documents=len(before),
        is_earlier_holdout=is_earlier_holdout,
    )


def held_out(number: int, base: Sequence[float] | Scores, tuned: Sequence[float] | Scores) -> PairedTask:
    return task(f"holdout_v{number:04d}", base, tuned, is_earlier_holdout=True)


def prose(number: int, base: Scores, tuned: Scores, tokens: Scores, name: str = "holdout") -> PairedTask:
    return PairedTask(
        label=TaskLabel(task=f"{name}_v{number:04d}", kind="retention", metric="perplexity", higher_is_better=False),
        scores=PairedScores(base=base, tuned=tuned, weights=tokens, aggregation="perplexity", higher_is_better=False),
        base=float(np.exp(-base.sum() / tokens.sum())),
        tuned=float(np.exp(-tuned.sum() / tokens.sum())),
        num_documents=len(tokens),
        is_earlier_holdout=True,
    )


def benchmarks(num_documents: int = 2_000) -> list[PairedTask]:
    """Two tasks of the user's of which nothing was lost."""
    return [task(name, answers(num_documents), answers(num_documents)) for name in BENCHMARKS]


def compare(paired: Sequence[PairedTask]) -> Outcome:
    return join([one.compare(seed=0) for one in paired], pool_earlier_holdouts(paired, seed=0))


def judged(paired: Sequence[PairedTask], **limits: object) -> Verdict:
    """With the default limits, of a run whose parent is each task's best version."""
    earlier = {one.label.task: "unused" for one in paired if one.is_earlier_holdout}
    config = EvaluationConfig(tasks=BENCHMARKS, earlier_holdouts=earlier, **limits)  # type: ignore[arg-type]
    chain = compare_with_chain([{"v0009": one} for one in paired], seed=0)
    return judge(compare(paired), config, chain)


right_or_wrong = st.sampled_from([0.0, 1.0])
sets_of_answers = st.lists(
    st.lists(st.tuples(right_or_wrong, right_or_wrong), min_size=1, max_size=12), min_size=1, max_size=6
)
sets_of_prose = st.lists(
    st.lists(st.tuples(st.floats(0.1, 4), st.floats(0.1, 4), st.integers(1, 50)), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30, deadline=None)
@given(sets_of_answers)
def test_pool_is_one_task_over_the_union_of_the_documents(sets: list[list[tuple[float, float]]]) -> None:
    paired = [held_out(number, *zip(*documents, strict=True)) for number, documents in enumerate(sets)]
    every = [document for documents in sets for document in documents]

    (compared,) = pool_earlier_holdouts(paired, seed=0)

    one = task("earlier_holdouts_acc", *zip(*every, strict=True)).compare(seed=0)
    assert compared.pool.comparison == one.comparison
    assert np.array_equal(compared.loss_draws, one.loss_draws)
    assert compared.pool.tasks == tuple(one.label.task for one in paired)


@settings(max_examples=20, deadline=None)
@given(sets_of_prose)
def test_perplexities_are_pooled_by_tokens(sets: list[list[tuple[float, float, int]]]) -> None:
    def columns(documents: list[tuple[float, float, int]]) -> tuple[Scores, Scores, Scores]:
        base, tuned, tokens = np.array(documents, dtype=np.float64).T
        return -base * tokens, -tuned * tokens, tokens

    paired = [prose(number, *columns(documents)) for number, documents in enumerate(sets)]
    base, tuned, tokens = columns([document for documents in sets for document in documents])

    (compared,) = pool_earlier_holdouts(paired, seed=0)

    comparison = compared.pool.comparison
    assert comparison.base == pytest.approx(np.exp(-base.sum() / tokens.sum()))
    assert comparison.tuned == pytest.approx(np.exp(-tuned.sum() / tokens.sum()))
    assert comparison.n == len(tokens)


def test_ten_versions_of_twenty_rows_without_a_loss_pass_beside_two_benchmarks() -> None:
    sets = [held_out(number, answers(20), answers(20)) for number in range(1, 11)]

    outcome, verdict = compare([*benchmarks(), *sets]), judged([*benchmarks(), *sets])

    assert verdict.passed
    # 200 documents and two times 2,000, none lost: 1.5, 0.15 and 0.15 points on three tasks.
    assert outcome.forgetting_upper < 0.01
    assert not any("too few" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("num_documents", [1, 2, 5, 10, 20])
def test_one_small_increment_does_not_block_the_chain(num_documents: int) -> None:
    kept = held_out(1, np.ones(num_documents), np.ones(num_documents))

    verdict = judged([*benchmarks(), kept])

    documents = "1 document" if num_documents == 1 else f"{num_documents} documents"
    assert verdict.passed
    assert (
        f"Earlier versions held out {documents} (holdout_v0001), scored by acc: too few to count, which takes 60."
        in verdict.reasons
    )


def test_small_pool_alone_changes_no_mean() -> None:
    lost = held_out(1, np.ones(20), np.zeros(20))

    alone, beside = compare(benchmarks()), compare([*benchmarks(), lost])

    for name in ("forgetting", "forgetting_upper", "backward_transfer", "average_accuracy_base"):
        assert getattr(beside, name) == getattr(alone, name)
    assert beside.tasks[-1].task == "holdout_v0001"
    assert [(pool.counts, pool.comparison.delta) for pool in beside.pools] == [(False, -1.0)]


def test_pool_that_just_counts_and_lost_nothing_passes_alone() -> None:
    def upper(num_documents: int) -> float:
        return join([task("facts", np.ones(num_documents), np.ones(num_documents)).compare(seed=0)]).forgetting_upper

    limit = EvaluationConfig(tasks=("facts",)).max_forgetting

    # Two standard errors of a quantile of 9,999 draws are 0.13 points here.
    assert upper(MIN_POOLED_DOCUMENTS) < limit + 0.0013
    assert upper(MIN_POOLED_DOCUMENTS - 10) > limit


def test_loss_on_the_pool_is_seen() -> None:
    sets = [held_out(number, np.ones(20), answers(20, right=12)) for number in range(1, 11)]

    verdict = judged([*benchmarks(), *sets])

    assert not verdict.passed
    assert verdict.reasons[0].startswith("Forgetting is 13.3 points, above the limit")
    assert verdict.reasons[1].endswith(
        "Most was lost in earlier_holdouts_acc (40.0 points since the best version of each set)."
    )


def test_long_chain_counts_as_one_task_of_three() -> None:
    sets = [held_out(number, np.ones(20), answers(20, right=14)) for number in range(1, 31)]

    outcome = compare([*benchmarks(), *sets])

    assert outcome.forgetting == pytest.approx(0.3 / 3)
    assert outcome.backward_transfer == pytest.approx(-0.3 / 3)
    assert outcome.average_accuracy_base == pytest.approx((0.8 + 0.8 + 1.0) / 3)
    assert outcome.average_accuracy_tuned == pytest.approx((0.8 + 0.8 + 0.7) / 3)
    assert len(outcome.tasks) == 32


def test_own_limit_of_a_set_holds_for_it_alone() -> None:
    sets = [held_out(1, np.ones(80), np.ones(80)), held_out(2, np.ones(80), answers(80, right=76))]

    free, limited = (judged([*benchmarks(), *sets], task_limits=limits) for limits in ({}, {"holdout_v0002": 0.05}))

    assert (free.passed, limited.passed) == (True, False)
    assert any(reason.startswith("holdout_v0002 lost 5.0 points, within") for reason in limited.reasons)


def test_accuracies_and_perplexities_are_two_pools_that_count_each_by_itself() -> None:
    tokens = np.full(70, 10.0)
    likelihood = -np.linspace(5, 15, 70)
    sets = [
        held_out(1, np.ones(50), np.ones(50)),
        prose(2, likelihood[:35], likelihood[:35] - 1, tokens[:35]),
        held_out(3, np.ones(9), np.ones(9)),
        prose(4, likelihood[35:], likelihood[35:] - 1, tokens[35:]),
    ]

    outcome = compare([*benchmarks(), *sets])

    assert [(pool.comparison.task, pool.tasks, pool.counts) for pool in outcome.pools] == [
        ("earlier_holdouts_acc", ("holdout_v0001", "holdout_v0003"), False),
        ("earlier_holdouts_perplexity", ("holdout_v0002", "holdout_v0004"), True),
    ]
    # Each token lost a tenth of a nat.
    assert outcome.forgetting == pytest.approx(np.expm1(0.1) / 3)


def test_one_document_of_a_perplexity_leaves_the_others_bounded() -> None:
    one = prose(1, np.array([-20.0]), np.array([-20.0]), np.array([9.0]))

    outcome, verdict = compare([*benchmarks(), one]), judged([*benchmarks(), one])

    assert verdict.passed
    assert (outcome.too_few_documents, outcome.unbounded_tasks) == ((), ())
    assert has_bound(outcome.tasks, outcome.pools)


def test_each_set_is_held_against_its_own_best_version() -> None:
    first = {
        version: held_out(1, base, answers(40, right=30))
        for version, base in (("v0001", answers(40, right=36)), ("v0002", answers(40, right=32)))
    }
    second = {
        version: held_out(2, base, answers(60, right=45))
        for version, base in (("v0001", answers(60, right=40)), ("v0002", answers(60, right=51)))
    }
    tuned = task("facts", answers(100), answers(100))

    outcome = compare_with_chain([{"v0002": tuned}, first, second], seed=0)

    (pool,) = outcome.best_pools
    assert [best.version for best in outcome.best_tasks] == ["v0002", "v0001", "v0002"]
    assert (pool.comparison.base, pool.comparison.tuned, pool.comparison.lost) == (0.87, 0.75, 12)
    assert outcome.cumulative_forgetting == pytest.approx(0.12 / 2)
    assert outcome.origin_pools == ()


def test_origin_is_compared_on_the_pool_as_on_a_task() -> None:
    known = [{"origin": held_out(number, np.ones(30), answers(30, right=27))} for number in (1, 2)]
    facts = {"origin": task("facts", answers(100), answers(100))}

    outcome = compare_with_chain([facts, *known], seed=0)

    assert len(outcome.origin_tasks) == 3
    assert outcome.origin_forgetting == pytest.approx(0.1 / 2)


def test_origin_that_knows_only_a_few_held_out_rows_says_nothing() -> None:
    facts = {"v0001": task("facts", answers(100), answers(100))}
    few = {"origin": held_out(1, np.ones(5), np.ones(5))}

    outcome = compare_with_chain([facts, few], seed=0)

    assert len(outcome.origin_tasks) == 1
    assert (outcome.origin_forgetting, outcome.origin_forgetting_upper) == (None, None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8))
def test_what_counts_is_every_task_but_the_sets_and_the_pool_if_it_is_large_enough(
    sizes: list[tuple[int, int, int]],
) -> None:
    sets = [
        held_out(number, answers(count, right=before), answers(count, right=after))
        for number, (count, before, after) in enumerate(sizes)
    ]
    paired = [*benchmarks(50), *sets]
    is_large = sum(count for count, _, _ in sizes) >= MIN_POOLED_DOCUMENTS

    outcome = compare(paired)

    pools = pool_earlier_holdouts(paired, seed=0)
    counted = joined([one.compare(seed=0) for one in paired], pools)
    assert len(counted) == 2 + is_large
    assert outcome.forgetting_upper == mean_loss(counted).upper >= outcome.forgetting
    assert [one.task for one in outcome.tasks] == [one.label.task for one in paired]
