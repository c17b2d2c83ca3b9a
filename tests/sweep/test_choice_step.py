import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from osft.comparison.compared_run import read_run
from osft.errors import WorkspaceError
from osft.sweep.choice_step import ChosenModel, choose_model
from osft.sweep.ratio_runs import RatioRun
from osft.versions.runs import runs_of
from osft.workspace import Manifest, Workspace
from tests.sweep.sweeps import SWEEP, finish_ratio, prepare_sweep, right, sweep_of
from tests.versions.finished_runs import set_age

TUNED = {
    0.1: {"kept": right(200), "new": right(60)},
    0.5: {"kept": right(199), "new": right(120)},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    workspace: Workspace
    runs: list[RatioRun]
    bytes_before: int
    chosen: ChosenModel


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep that is through; only to be read."""
    workspace = Workspace(tmp_path_factory.mktemp("sweep"))
    runs = sweep_of(workspace, TUNED)
    before = bytes_on_disk(workspace)
    return Sweep(workspace=workspace, runs=runs, bytes_before=before, chosen=choose_model(workspace, SWEEP, runs))


def bytes_on_disk(workspace: Workspace) -> int:
    """Return the size of all files, each counted once however many names it has."""
    files = {path.stat().st_ino: path.stat().st_size for path in workspace.root.rglob("*") if path.is_file()}
    return sum(files.values())


def test_the_chosen_model_is_the_sweeps_own(sweep: Sweep) -> None:
    run, chosen = sweep.workspace.run_directory(SWEEP), sweep.chosen

    assert chosen.choice.ratio == 0.5
    assert (chosen.training.path, chosen.evaluation.path) == ("runs/sweep/training", "runs/sweep/evaluation")
    assert (run / "training/final/model.safetensors").read_text() == "weights of 0.5"
    assert Manifest.load(run / "evaluation/manifest.json").inputs["trained"] == chosen.training.fingerprint
    assert read_run(sweep.workspace, SWEEP).metrics["target_gain"] == pytest.approx(0.6)


def test_the_choice_is_kept_with_its_pages(sweep: Sweep) -> None:
    folder = sweep.chosen.folder

    assert folder == sweep.workspace.run_directory(SWEEP) / "choice"
    names = [file.name for file in Manifest.load(folder / "manifest.json").files]
    assert names == ["choice.json", "report.html", "report.md"]


def test_the_sweeps_own_model_takes_no_room(sweep: Sweep) -> None:
    written = [*sweep.chosen.folder.iterdir(), *sweep.workspace.root.rglob("manifest.json")]

    assert bytes_on_disk(sweep.workspace) - sweep.bytes_before < sum(path.stat().st_size for path in written)


def test_each_ratios_run_is_whole_for_whoever_compares_runs(sweep: Sweep) -> None:
    missing = [read_run(sweep.workspace, run.run_id).missing_step for run in sweep.runs]

    assert missing == [None, None]


def test_a_retried_step_finds_its_choice(workspace: Workspace) -> None:
    runs = sweep_of(workspace, TUNED)
    first = choose_model(workspace, SWEEP, runs)
    written = (first.folder / "choice.json").stat()

    again = choose_model(workspace, SWEEP, runs)

    assert again == first
    assert (first.folder / "choice.json").stat() == written


def test_a_sweep_with_another_result_replaces_its_choice_and_its_model(workspace: Workspace) -> None:
    runs = sweep_of(workspace, TUNED)
    choose_model(workspace, SWEEP, runs)
    (workspace.run_directory(runs[1].run_id) / "evaluation/manifest.json").unlink()
    finish_ratio(workspace, runs[1], {"kept": right(100), "new": right(120)})

    chosen = choose_model(workspace, SWEEP, runs)

    assert (chosen.choice.ratio, chosen.choice.passed) == (0.1, True)
    weights = workspace.run_directory(SWEEP) / "training/final/model.safetensors"
    assert weights.read_text() == "weights of 0.1"


def test_a_sweep_of_which_nothing_passed_is_not_under_way_any_more(workspace: Workspace) -> None:
    runs = sweep_of(workspace, {ratio: {"kept": right(100), "new": right(60)} for ratio in (0.1, 0.5)})

    choose_model(workspace, SWEEP, runs)

    assert [run.run_id for run in runs_of(workspace) if run.is_under_way(now=time.time())] == []


def test_a_ratio_that_is_not_evaluated_is_named(workspace: Workspace) -> None:
    runs = prepare_sweep(workspace)
    finish_ratio(workspace, runs[0], TUNED[0.1])

    with pytest.raises(WorkspaceError, match="run 'sweep-ratio-0.5' has no evaluation: .* Start a new sweep."):
        choose_model(workspace, SWEEP, runs)


def test_a_ratio_whose_run_is_gone_does_not_come_back_as_a_part_of_one(workspace: Workspace) -> None:
    runs = sweep_of(workspace, TUNED)
    shutil.rmtree(workspace.run_directory(runs[1].run_id))

    with pytest.raises(WorkspaceError, match="run 'sweep-ratio-0.5' has no evaluation"):
        choose_model(workspace, SWEEP, runs)

    assert not workspace.run_directory(runs[1].run_id).exists()
    assert not (workspace.run_directory(runs[0].run_id) / "baseline").exists()


def test_the_choice_does_not_change_when_a_ratio_was_last_written_or_ended(workspace: Workspace) -> None:
    runs = sweep_of(workspace, TUNED)
    for run, age in zip(runs, (7200, 3600), strict=True):
        set_age(workspace, run.run_id, age)
    # Written an hour ago or more, as the shared steps are.
    set_age(workspace, SWEEP, 9000)
    before = {run.run_id: run.last_written for run in runs_of(workspace) if run.run_id != SWEEP}
    ended = [read_run(workspace, run.run_id).ended_at for run in runs]

    choose_model(workspace, SWEEP, runs)

    assert {run.run_id: run.last_written for run in runs_of(workspace) if run.run_id != SWEEP} == before
    assert [read_run(workspace, run.run_id).ended_at for run in runs] == ended


def test_a_ratio_whose_run_has_no_training_is_named(workspace: Workspace) -> None:
    runs = sweep_of(workspace, TUNED)
    (workspace.run_directory(runs[0].run_id) / "training/manifest.json").unlink()

    with pytest.raises(WorkspaceError, match="run 'sweep-ratio-0.1' is not evaluated: osft-training is missing. Start"):
        choose_model(workspace, SWEEP, runs)


def test_a_sweep_without_a_baseline_is_named(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="run 'sweep' has no baseline: .* Start a new sweep."):
        choose_model(workspace, SWEEP, [RatioRun(run_id="sweep-ratio-0.5", ratio=0.5)])
