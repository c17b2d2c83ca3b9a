import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from osft.comparison.compared_run import read_run
from osft.errors import ConfigError, MissingPathError
from osft.evaluation.parameters import data_summary
from osft.sweep.ratio_runs import RatioRun, prepare_ratio_runs
from osft.versions.runs import runs_of
from osft.workspace import Workspace
from tests.sweep.sweeps import SWEEP, prepare_steps, prepare_sweep


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_each_ratio_has_a_run_the_smallest_first(workspace: Workspace) -> None:
    runs = prepare_sweep(workspace, [0.5, 1, 0.05])

    assert runs == [
        RatioRun(run_id="sweep-ratio-0.05", ratio=0.05),
        RatioRun(run_id="sweep-ratio-0.5", ratio=0.5),
        RatioRun(run_id="sweep-ratio-1.0", ratio=1.0),
    ]


def test_the_same_sweep_again_finds_the_same_runs(workspace: Workspace) -> None:
    first = prepare_sweep(workspace)

    assert prepare_sweep(workspace) == first


def test_a_ratios_run_has_all_that_its_evaluation_reports_of_the_data(workspace: Workspace) -> None:
    run, _ = prepare_sweep(workspace)

    summary = data_summary(workspace.run_directory(run.run_id))

    assert (summary["uri"], summary["rows_valid"], summary["train_tokens"]) == ("x.jsonl", 9, 70)


def test_a_ratios_run_is_compared_as_any_other(workspace: Workspace) -> None:
    run, _ = prepare_sweep(workspace)

    compared = read_run(workspace, run.run_id)

    assert compared.starts_from == "org/base"
    assert compared.data["rows_train"] == 7
    assert compared.missing_step == "baseline-evaluation"


def test_what_the_ratios_start_from_is_needed_as_long_as_they_are_under_way(workspace: Workspace) -> None:
    prepare_sweep(workspace)

    under_way = [run.run_id for run in runs_of(workspace) if run.is_under_way(now=time.time())]

    assert sorted(under_way) == [SWEEP, "sweep-ratio-0.1", "sweep-ratio-0.5"]


def test_a_ratios_run_belongs_to_its_sweep_before_it_holds_anything(workspace: Workspace) -> None:
    steps = prepare_steps(workspace)
    shutil.rmtree(workspace.run_directory(SWEEP) / "base")

    with pytest.raises(MissingPathError, match="runs/sweep/base"):
        prepare_ratio_runs(workspace, SWEEP, [0.1, 0.5], steps)

    assert [path.name for path in workspace.run_directory("sweep-ratio-0.1").iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan"), "0.5", True, None])
def test_a_ratio_that_is_none_is_refused(workspace: Workspace, ratio: Any) -> None:
    with pytest.raises(ConfigError, match=r"sweep_ratios\[1\] is .*no number above 0 and at most 1. Give shares"):
        prepare_ratio_runs(workspace, SWEEP, [0.1, ratio], {})


def test_a_ratio_that_is_there_twice_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"sweep_ratios\[2\] is 0.5, which is there twice. Give each ratio once."):
        prepare_ratio_runs(workspace, SWEEP, [0.5, 0.1, 0.5], {})


@pytest.mark.parametrize("ratios", [[], [0.5]])
def test_one_ratio_is_no_sweep(workspace: Workspace, ratios: list[float]) -> None:
    with pytest.raises(ConfigError, match="a sweep compares two at least. Add one"):
        prepare_ratio_runs(workspace, SWEEP, ratios, {})
