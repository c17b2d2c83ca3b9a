import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask, matrix_of
from osft.versions.lineage import chain_of
from osft.versions.promotion import promote_model
from osft.workspace import Workspace
from tests.versions.chains import five_domains, make_lineage, make_score
from tests.versions.finished_runs import MODEL, ORIGIN, begin_run, finish_run, promote

VERSIONS = ("v0000", "v0001", "v0002", "v0003")
ACCURACIES = st.floats(0, 1, allow_subnormal=False)
PERPLEXITIES = st.floats(1, 1e4)


def matrix(column: list[float | None], **task: object) -> AccuracyMatrix:
    """Return a matrix of one task, known before the first version unless it is said to be learnt."""
    fields = {"name": "task", "metric": "acc", **task}
    return AccuracyMatrix(
        versions=VERSIONS[: len(column)],
        tasks=(MatrixTask(**fields),),
        scores=tuple((score,) for score in column),
    )


@st.composite
def matrices(draw: st.DrawFn) -> AccuracyMatrix:
    """Draw a matrix in which any cell may be missing, of accuracies and perplexities."""
    rows = draw(st.integers(1, 4))
    tasks, columns = [], []
    for place in range(draw(st.integers(1, 4))):
        higher_is_better = draw(st.booleans())
        learnt = draw(st.sampled_from([None, *VERSIONS[1:rows]]))
        tasks.append(MatrixTask(name=f"t{place}", metric="m", higher_is_better=higher_is_better, learnt_by=learnt))
        cell = st.none() | (ACCURACIES if higher_is_better else PERPLEXITIES)
        columns.append(draw(st.lists(cell, min_size=rows, max_size=rows)))
    return AccuracyMatrix(versions=VERSIONS[:rows], tasks=tuple(tasks), scores=tuple(zip(*columns, strict=True)))


def test_a_chain_becomes_a_matrix_with_a_row_a_version_and_the_origin_first() -> None:
    chain = five_domains(versions=2)

    found = matrix_of(chain)

    assert found.versions == ("v0000", "v0001", "v0002")
    assert [task.name for task in found.tasks] == ["country_code", "country_capital", "holdout_v0001", "holdout_v0002"]
    assert [task.learnt_by for task in found.tasks] == [None, None, "v0001", "v0002"]
    assert found.scores[0] == (1.0, 0.972, 0.0, None)
    assert found.scores[2] == (0.976, 0.948, 0.93, 1.0)


def test_the_score_before_a_training_stands_in_for_a_parent_that_was_not_asked() -> None:
    first = make_lineage(1, [make_score("old", 0.8, before=0.9)])
    second = make_lineage(2, [make_score("old", 0.7, before=0.8), make_score("new", 1.0, before=0.2, kind="target")])

    found = matrix_of([first, second])

    assert found.versions == ("v0000", "v0001", "v0002")
    assert found.scores == ((0.9, None), (0.8, 0.2), (0.7, 1.0))


def test_a_versions_own_score_counts_and_not_what_its_successor_was_compared_with() -> None:
    first = make_lineage(1, [make_score("old", 0.8)])
    second = make_lineage(2, [make_score("old", 0.7, before=0.75)])

    found = matrix_of([first, second])

    assert found.versions == ("v0001", "v0002")
    assert found.scores == ((0.8,), (0.7,))


def test_a_task_whose_metric_changed_has_a_column_for_each() -> None:
    first = make_lineage(1, [make_score("old", 0.8)])
    second = make_lineage(2, [make_score("old", 12.0, metric="perplexity", higher_is_better=False)])

    found = matrix_of([first, second])

    assert [(task.name, task.metric) for task in found.tasks] == [("old", "acc"), ("old", "perplexity")]
    assert found.scores == ((0.8, None), (None, 12.0))


def test_figures_of_a_chain_are_those_of_the_papers() -> None:
    found = matrix_of(five_domains(versions=3)).figures()

    by_task = {one.task: one for one in found.tasks}
    # R[3, :] is 0.964, 0.936, 0.9, 0.93 and 1 for the task that version 3 learnt itself.
    assert found.average_accuracy == pytest.approx((0.964 + 0.936 + 0.9 + 0.93 + 1.0) / 5)
    assert found.backward_transfer == pytest.approx(-(0.036 + 0.036 + 0.1 + 0.07) / 4)
    assert found.forgetting == pytest.approx((0.036 + 0.036 + 0.1 + 0.07) / 4)
    assert by_task["holdout_v0001"].best_version == "v0001"
    assert by_task["holdout_v0003"].forgetting is None


def test_forgetting_is_against_the_best_earlier_version_and_transfer_against_the_one_that_learnt() -> None:
    found = matrix([0.1, 0.7, 0.9, 0.8], learnt_by="v0001").figures().tasks[0]

    assert (found.best, found.best_version) == (0.9, "v0002")
    assert found.forgetting == pytest.approx(0.1)
    assert found.transfer == pytest.approx(0.1)


def test_a_task_that_every_version_is_trained_on_counts_as_learnt_by_the_first_of_them() -> None:
    chain = [make_lineage(0, [make_score("medicine", 0.3)], parent=None)]
    for number, score in enumerate((0.5, 0.4, 0.35), start=1):
        chain.append(make_lineage(number, [make_score("medicine", score, kind="target")]))

    found = matrix_of(chain)

    assert found.tasks[0].learnt_by == "v0001"
    figures = found.figures().tasks[0]
    assert figures.forgetting == pytest.approx(0.15)
    assert figures.transfer == pytest.approx(-0.15)


def test_scores_on_other_questions_have_a_column_of_their_own() -> None:
    few = make_lineage(1, [make_score("exam", 0.90, before=0.91, documents=100, questions="first 100")])
    many = make_lineage(2, [make_score("exam", 0.70, before=0.71, documents=14_000, questions="all")])

    found = matrix_of([few, many])

    assert [task.label for task in found.tasks] == ["exam (until v0001)", "exam"]
    assert found.scores == ((0.91, None), (0.90, 0.71), (None, 0.70))
    assert found.figures().forgetting == pytest.approx(0.01)
    assert found.figures().backward_transfer == pytest.approx(-0.01)


def test_edited_questions_of_the_same_number_are_other_questions() -> None:
    chain = [make_lineage(number, [make_score("exam", 0.9, questions=f"q{number}")]) for number in (1, 2)]

    found = matrix_of(chain)

    assert found.scores == ((0.9, None), (None, 0.9))
    assert found.figures().forgetting is None


def test_a_task_that_was_learnt_before_its_questions_changed_can_be_forgotten_at_once() -> None:
    first = make_lineage(1, [make_score("medicine", 0.5, before=0.3, kind="target", questions="few")])
    second = make_lineage(2, [make_score("medicine", 0.4, before=0.6, kind="target", questions="many")])

    figures = matrix_of([first, second]).figures().tasks[1]

    assert figures.forgetting == pytest.approx(0.2)
    assert figures.transfer == pytest.approx(-0.2)


def test_a_second_chain_from_the_same_origin_has_no_columns_of_the_first(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    base = begin_run(workspace, "run-b", model_base=ORIGIN)
    training, evaluation = finish_run(workspace, "run-b")
    promote_model(workspace, run_id="run-b", model_name=MODEL, base=base, training=training, evaluation=evaluation)

    found = matrix_of(chain_of(workspace, MODEL))

    assert found.versions == ("v0000", "v0002")
    assert [task.label for task in found.tasks] == ["parity", "holdout_v0002"]
    assert found.scores == ((0.5, 0.5), (0.75, 0.75))


def test_a_gain_is_no_forgetting_and_makes_up_for_none() -> None:
    both = AccuracyMatrix(
        versions=("v0000", "v0001"),
        tasks=(MatrixTask(name="lost", metric="acc"), MatrixTask(name="gained", metric="acc")),
        scores=((0.9, 0.5), (0.7, 0.9)),
    )

    found = both.figures()

    assert found.forgetting == pytest.approx(0.1)
    assert found.backward_transfer == pytest.approx(0.1)


def test_a_perplexity_is_lost_relative_to_its_lowest() -> None:
    found = matrix([12.0, 10.0, 10.5], metric="perplexity", higher_is_better=False).figures()

    assert found.tasks[0].best == 10.0
    assert found.tasks[0].forgetting == pytest.approx(0.05)
    assert found.tasks[0].transfer == pytest.approx(0.125)
    assert found.average_accuracy is None


def test_a_score_on_another_scale_than_shares_is_taken_relatively() -> None:
    found = matrix([40.0, 30.0], metric="bleu").figures()

    assert found.tasks[0].forgetting == pytest.approx(0.25)
    assert found.accuracy_tasks == 0


def test_what_the_last_version_was_not_asked_is_in_no_figure() -> None:
    found = matrix([0.9, 0.8, None]).figures()

    assert found.tasks[0].last is None
    assert (found.average_accuracy, found.backward_transfer, found.forgetting) == (None, None, None)


def test_a_matrix_whose_cells_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("1 rows of [2] cells for 1 versions and 1 tasks")):
        AccuracyMatrix(versions=("v0001",), tasks=(MatrixTask(name="a", metric="acc"),), scores=((1.0, 0.5),))


@given(matrices())
def test_figures_come_from_known_cells_alone(found: AccuracyMatrix) -> None:
    figures = found.figures()

    known = [row for row in found.scores[-1] if row is not None]
    for task, one in zip(found.tasks, figures.tasks, strict=True):
        earlier = [score for score in found.column(task)[:-1] if score is not None]
        assert (one.forgetting is None) == (one.last is None or not earlier or found.versions[-1] == task.learnt_by)
        assert one.best is None or one.best == (max if task.higher_is_better else min)(earlier)
        assert one.forgetting is None or 0 <= one.forgetting < math.inf
    assert figures.average_accuracy is None or 0 <= figures.average_accuracy <= 1
    assert figures.accuracy_tasks <= len(known)


@given(matrices())
def test_forgetting_is_never_less_than_what_transfer_lost(found: AccuracyMatrix) -> None:
    # The best earlier score is no worse than the one right after learning.
    for one in found.figures().tasks:
        if one.forgetting is not None and one.transfer is not None:
            slack = 1e-9 * max(1.0, abs(one.transfer))
            task = next(task for task in found.tasks if task.name == one.task)
            if not found.is_relative(task):
                assert one.forgetting >= -one.transfer - slack


@given(matrices())
def test_a_version_that_was_asked_nothing_changes_no_figure_of_the_one_before(found: AccuracyMatrix) -> None:
    empty = tuple(None for _ in found.tasks)
    longer = AccuracyMatrix(versions=("v-1", *found.versions), tasks=found.tasks, scores=(empty, *found.scores))

    assert longer.figures() == found.figures()


@given(st.lists(ACCURACIES, min_size=2, max_size=4))
def test_where_lower_is_better_the_lowest_earlier_score_is_the_best(column: list[float]) -> None:
    found = matrix(column, higher_is_better=False).figures().tasks[0]

    assert found.best == min(column[:-1])
    assert found.best_version == VERSIONS[column.index(min(column[:-1]))]


def test_the_origin_learns_nothing_whatever_its_tasks_are_called() -> None:
    found = matrix_of([make_lineage(0, [make_score("elements", 0.0, kind="target")], parent=None)])

    assert found.tasks[0].learnt_by is None
