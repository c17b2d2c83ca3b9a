"""The statistics of a loss against the best of several versions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.evaluation.cumulative import ORIGIN, CumulativeOutcome, best_version, compare_with_chain
from osft.evaluation.forgetting import TaskLabel, join
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.statistics import PairedScores, Scores

DOCUMENTS = 12
VERSIONS = ("v0001", "v0002", "v0003", "v0004")


def paired(base: Sequence[float] | Scores, tuned: Sequence[float] | Scores, *, task: str = "facts") -> PairedTask:
    before, after = (np.asarray(scores, dtype=np.float64) for scores in (base, tuned))
    return PairedTask(
        label=TaskLabel(task=task, kind="retention", metric="acc"),
        scores=PairedScores(base=before, tuned=after, weights=np.ones(len(before))),
        base=float(before.mean()),
        tuned=float(after.mean()),
        num_documents=len(before),
    )


def perplexity(base: float, tuned: float) -> PairedTask:
    label = TaskLabel(task="prose", kind="retention", metric="perplexity", higher_is_better=False)
    return PairedTask(label=label, scores=None, base=base, tuned=tuned, num_documents=9)


def against(versions: Mapping[str, Scores], tuned: Scores, *, task: str = "facts") -> dict[str, PairedTask]:
    return {version: paired(scores, tuned, task=task) for version, scores in versions.items()}


answers = st.lists(st.sampled_from([0.0, 1.0]), min_size=DOCUMENTS, max_size=DOCUMENTS).map(np.array)


@st.composite
def chains(draw: st.DrawFn) -> list[dict[str, PairedTask]]:
    """Two tasks, each known of some of the versions and of the base, the last one."""
    tasks = []
    for task in ("facts", "dates"):
        known = [version for version in VERSIONS[:-1] if draw(st.booleans())]
        versions = {version: draw(answers) for version in (*known, VERSIONS[-1])}
        tasks.append(against(versions, draw(answers), task=task))
    return tasks


def compare(candidates: Sequence[Mapping[str, PairedTask]]) -> CumulativeOutcome:
    return compare_with_chain(candidates, seed=0)


def test_best_version_has_the_highest_score_or_the_lowest_where_lower_is_better() -> None:
    accuracies = {"v0001": paired([1, 0, 0], [1, 1, 1]), "v0002": paired([1, 1, 0], [1, 1, 1])}
    perplexities = {"v0001": perplexity(8.0, 9.0), "v0002": perplexity(9.5, 9.0)}

    assert (best_version(accuracies), best_version(perplexities)) == ("v0002", "v0001")


def test_oldest_of_equally_good_versions_counts() -> None:
    versions = {"v0001": paired([1, 0], [1, 0]), "v0002": paired([0, 1], [1, 0])}

    assert best_version(versions) == "v0001"


def test_loss_is_told_by_task_with_the_version_and_its_interval() -> None:
    first, second = np.repeat([1.0, 0.0], [9, 1]), np.repeat([1.0, 0.0], [7, 3])

    outcome = compare([against({"v0001": first, "v0002": second}, np.repeat([1.0, 0.0], [6, 4]))])

    (best,) = outcome.best_tasks
    assert (best.version, best.compared_with, best.is_of_base) == ("v0001", ("v0001", "v0002"), False)
    assert (best.comparison.base, best.comparison.tuned, best.comparison.lost) == (0.9, 0.6, 3)
    assert best.comparison.ci_low is not None
    assert best.comparison.ci_low < -0.3
    assert outcome.cumulative_forgetting == pytest.approx(0.3)
    assert outcome.cumulative_forgetting_upper > 0.3


def test_relative_loss_is_a_share_of_the_best_score() -> None:
    outcome = compare([{"v0001": perplexity(8.0, 10.0), "v0002": perplexity(9.0, 10.0)}])

    assert outcome.cumulative_forgetting == pytest.approx(0.25)


def test_gain_on_one_task_does_not_make_up_for_a_loss_on_another() -> None:
    lost = against({"v0001": np.ones(10)}, np.repeat([1.0, 0.0], [8, 2]))
    gained = against({"v0001": np.zeros(10)}, np.ones(10), task="dates")

    assert compare([lost, gained]).cumulative_forgetting == pytest.approx(0.1)


def test_origin_is_compared_where_it_is_known() -> None:
    known = against({ORIGIN: np.ones(10), "v0001": np.ones(10)}, np.repeat([1.0, 0.0], [9, 1]))
    unknown = against({"v0001": np.ones(10)}, np.zeros(10), task="dates")

    outcome = compare([known, unknown])

    assert [task.task for task in outcome.origin_tasks] == ["facts"]
    assert outcome.origin_forgetting == pytest.approx(0.1)
    assert outcome.cumulative_forgetting == pytest.approx(0.55)


def test_without_the_origin_nothing_is_said_of_it() -> None:
    outcome = compare([against({"v0001": np.ones(10)}, np.ones(10))])

    assert (outcome.origin_tasks, outcome.origin_forgetting, outcome.origin_forgetting_upper) == ((), None, None)


@settings(max_examples=40)
@given(chains())
def test_against_the_best_no_less_is_lost_than_against_the_base(chain: list[dict[str, PairedTask]]) -> None:
    base = join([task[VERSIONS[-1]].compare(seed=0) for task in chain])

    outcome = compare(chain)

    assert outcome.cumulative_forgetting >= base.forgetting - 1e-12
    assert outcome.cumulative_forgetting_upper >= outcome.cumulative_forgetting
    assert all(best.comparison.base >= task.base for best, task in zip(outcome.best_tasks, base.tasks, strict=True))


@settings(max_examples=40)
@given(chains())
def test_version_more_never_makes_a_loss_smaller(chain: list[dict[str, PairedTask]]) -> None:
    fewer = [dict(list(task.items())[1:]) if len(task) > 1 else task for task in chain]

    assert compare(chain).cumulative_forgetting >= compare(fewer).cumulative_forgetting - 1e-12


@settings(max_examples=20)
@given(chains())
def test_of_the_base_alone_it_is_the_forgetting_of_the_run(chain: list[dict[str, PairedTask]]) -> None:
    alone = [{VERSIONS[-1]: task[VERSIONS[-1]]} for task in chain]
    base = join([task[VERSIONS[-1]].compare(seed=0) for task in alone])

    outcome = compare(alone)

    assert outcome.cumulative_forgetting == base.forgetting
    assert outcome.cumulative_forgetting_upper == base.forgetting_upper
    assert all(best.is_of_base for best in outcome.best_tasks)


@pytest.mark.parametrize("true_loss", [0.0, 0.05, 0.2])
def test_bound_holds_against_the_truly_best_version_and_the_value_errs_upwards(true_loss: float) -> None:
    """Of eight equally good versions the luckiest is taken: the measured loss is too large, and the bound covers."""
    rng = np.random.default_rng(7)
    values, covered, trials = [], 0, 200
    for _ in range(trials):
        chance = rng.beta(4, 1, size=120)
        versions = {f"v{number:04d}": (rng.random(120) < chance).astype(np.float64) for number in range(8)}
        tuned = (rng.random(120) < chance * (1 - true_loss / 0.8)).astype(np.float64)
        outcome = compare([against(versions, tuned)])
        values.append(outcome.cumulative_forgetting)
        covered += outcome.cumulative_forgetting_upper >= true_loss

    # At 95% each, 180 or fewer of 200 would have a chance of two in a thousand.
    assert covered > 180
    assert np.mean(values) > true_loss
