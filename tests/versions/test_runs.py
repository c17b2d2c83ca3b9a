"""Which runs are under way: those of a sweep's ratios with the sweep's own."""

import shutil
import time

import pytest

from osft.errors import WorkspaceError
from osft.sweep.choice_step import choose_model
from osft.sweep.ratio_runs import RatioRun
from osft.versions.pruning import prune
from osft.versions.runs import ABANDONED_AFTER_SECONDS, join_sweep, runs_of
from osft.workspace import Workspace, write_json
from tests.sweep.sweeps import SWEEP, finish_ratio, prepare_sweep, right
from tests.versions.finished_runs import MODEL, begin_run, promote, set_age

PASSES = {"kept": right(200), "new": right(120)}
FAILS = {"kept": right(100), "new": right(2)}
LONG_AGO = ABANDONED_AFTER_SECONDS + 3600
SWEEPS_RUNS = {SWEEP, "sweep-ratio-0.1", "sweep-ratio-0.5"}


@pytest.fixture
def ratios(workspace: Workspace) -> list[RatioRun]:
    """The ratios of a sweep that is about to train."""
    return prepare_sweep(workspace)


def under_way(workspace: Workspace) -> set[str]:
    return {run.run_id for run in runs_of(workspace) if run.is_under_way(now=time.time())}


def test_a_ratio_that_did_not_pass_is_under_way_while_the_others_train(
    workspace: Workspace, ratios: list[RatioRun]
) -> None:
    finish_ratio(workspace, ratios[0], FAILS)

    assert under_way(workspace) == SWEEPS_RUNS


def test_the_ratios_of_a_sweep_that_cannot_win_any_more_are_under_way_until_it_ends(
    workspace: Workspace, ratios: list[RatioRun]
) -> None:
    for run in ratios:
        finish_ratio(workspace, run, PASSES)
    promote(workspace, "scheduled")

    before = under_way(workspace)
    choose_model(workspace, SWEEP, ratios)

    assert (before, under_way(workspace)) == (SWEEPS_RUNS, set())


def test_a_pruning_in_the_middle_of_a_sweep_leaves_it_all_that_it_chooses_from(
    workspace: Workspace, ratios: list[RatioRun]
) -> None:
    finish_ratio(workspace, ratios[0], FAILS)
    for number in (1, 2):
        promote(workspace, f"scheduled-{number}")
        set_age(workspace, f"scheduled-{number}", -60 * number)

    removed = prune(workspace, MODEL, keep_versions=5, keep_runs=1)

    assert [item.path for item in removed] == ["runs/scheduled-1"]
    finish_ratio(workspace, ratios[1], PASSES)
    assert choose_model(workspace, SWEEP, ratios).choice.ratio == 0.5


def test_the_ratios_are_under_way_until_their_chosen_model_is_promoted(
    workspace: Workspace, ratios: list[RatioRun]
) -> None:
    for run in ratios:
        finish_ratio(workspace, run, PASSES)
    choose_model(workspace, SWEEP, ratios)

    before = under_way(workspace)
    promote(workspace, SWEEP)

    assert (before, under_way(workspace)) == (SWEEPS_RUNS, set())


@pytest.mark.parametrize("waiting", [SWEEP, "sweep-ratio-0.1", "sweep-ratio-0.5"])
def test_no_run_of_a_sweep_is_given_up_while_something_is_written_in_one(
    workspace: Workspace, ratios: list[RatioRun], waiting: str
) -> None:
    set_age(workspace, waiting, LONG_AGO)

    assert under_way(workspace) == SWEEPS_RUNS


def test_a_sweep_is_given_up_with_all_its_ratios(workspace: Workspace, ratios: list[RatioRun]) -> None:
    finish_ratio(workspace, ratios[0], PASSES)
    for run_id in SWEEPS_RUNS:
        set_age(workspace, run_id, LONG_AGO)

    assert under_way(workspace) == set()


def test_the_ratios_of_a_sweep_that_is_gone_are_finished(workspace: Workspace, ratios: list[RatioRun]) -> None:
    shutil.rmtree(workspace.run_directory(SWEEP))

    assert {run.run_id for run in runs_of(workspace)} == SWEEPS_RUNS - {SWEEP}
    assert under_way(workspace) == set()


def test_a_ratio_without_any_step_is_given_up_only_with_its_sweep(workspace: Workspace) -> None:
    begin_run(workspace, SWEEP)
    begin_run(workspace, "other")
    join_sweep(workspace, "sweep-ratio-0.1", SWEEP)
    set_age(workspace, "sweep-ratio-0.1", LONG_AGO)

    kept = prune(workspace, MODEL, keep_versions=0, keep_runs=5)
    set_age(workspace, SWEEP, LONG_AGO)
    removed = prune(workspace, MODEL, keep_versions=0, keep_runs=5)

    assert (kept, [item.path for item in removed]) == ([], ["runs/sweep-ratio-0.1"])


def test_a_run_that_is_no_ratios_is_judged_by_itself(workspace: Workspace, ratios: list[RatioRun]) -> None:
    begin_run(workspace, "sweep-ratio-of-a-person")
    set_age(workspace, "sweep-ratio-of-a-person", LONG_AGO)

    assert under_way(workspace) == SWEEPS_RUNS


def test_a_sweep_that_cannot_be_a_folder_is_refused(workspace: Workspace) -> None:
    begin_run(workspace, "one")
    write_json(workspace.run_directory("one") / "sweep.json", {"run_id": "../elsewhere"})

    with pytest.raises(WorkspaceError, match="run id '../elsewhere' cannot be a folder name"):
        runs_of(workspace)
