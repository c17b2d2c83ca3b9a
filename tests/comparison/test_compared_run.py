import math
import re
from pathlib import Path

import pytest

from osft.comparison.compared_run import LossPoint, choose_runs, read_run, run_names
from osft.errors import ConfigError, MissingPathError, WorkspaceError
from osft.versions.base_model import resolve_base
from osft.workspace import Workspace, write_json
from tests.comparison.runs import write_metrics, write_run


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path.resolve())


def test_a_finished_run_has_settings_data_metrics_and_losses(workspace: Workspace) -> None:
    write_run(workspace, "run-1", losses=(4.0, 2.0))

    run = read_run(workspace, "run-1")

    assert run.missing_step is None
    assert run.began_at == "2027-01-15T08:00:00+00:00"
    assert run.ended_at == "2027-01-15T08:05:00+00:00"
    assert run.parameters["train_learning_rate"] == 6e-3
    assert run.parameters["model_base"] == "org/base"
    assert run.data["rows_train"] == 311
    assert run.metrics["retention.country_capital.delta"] == -0.03
    assert run.metrics["train_final_loss"] == 2.0
    assert run.loss == (LossPoint(step=1, loss=4.0), LossPoint(step=2, loss=2.0))


def test_hashes_and_the_runs_own_folders_are_no_settings(workspace: Workspace) -> None:
    write_run(workspace, "run-1")

    parameters = read_run(workspace, "run-1").parameters

    assert not {"train_processed", "data_uri_sha256", "eval_holdout"} & parameters.keys()


def test_a_stopped_run_names_the_step_that_is_missing_and_has_the_losses_so_far(workspace: Workspace) -> None:
    partial = write_run(workspace, "run-1", last_step="baseline") / "training.partial"
    partial.mkdir()
    write_metrics(partial, (4.0, 3.0))
    with (partial / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')

    run = read_run(workspace, "run-1")

    assert run.missing_step == "osft-training"
    assert run.report is None
    assert [point.loss for point in run.loss] == [4.0, 3.0]


def test_a_loss_that_is_no_number_stays_none(workspace: Workspace) -> None:
    folder = write_run(workspace, "run-1")
    write_metrics(folder / "training", (4.0, math.nan))

    assert math.isnan(read_run(workspace, "run-1").loss[1].loss)


def test_a_run_that_has_only_begun_is_shown(workspace: Workspace) -> None:
    workspace.run_directory("run-1").mkdir(parents=True)

    run = read_run(workspace, "run-1")

    assert run.missing_step == "dataset-download"
    assert run.parameters == {}


def test_a_run_without_new_rows_is_finished(workspace: Workspace) -> None:
    folder = write_run(workspace, "run-1", last_step="valid")
    write_json(folder / "valid" / "validation.json", {"rows_valid": 0, "rows_quarantined": 0, "rows_seen": 336})

    run = read_run(workspace, "run-1")

    assert run.has_nothing_new
    assert run.missing_step is None
    assert run.data["rows_seen"] == 336


def test_what_was_given_as_the_base_counts_and_not_what_it_stood_for(workspace: Workspace) -> None:
    write_run(workspace, "run-1")
    resolve_base(
        workspace, run_id="run-1", model_base="promoted://demo", model_origin="org/base", promote_model_name="demo"
    )

    run = read_run(workspace, "run-1")

    assert run.parameters["model_base"] == "promoted://demo"
    assert run.parameters["promote_model_name"] == "demo"
    assert run.starts_from == "org/base"


def test_an_unknown_run_is_answered_with_near_names(workspace: Workspace) -> None:
    write_run(workspace, "run-1", last_step="raw")

    with pytest.raises(MissingPathError, match=re.escape("run 'run-2' is not in") + ".*Did you mean run-1?"):
        read_run(workspace, "run-2")


def test_a_damaged_metrics_file_is_named(workspace: Workspace) -> None:
    folder = write_run(workspace, "run-1")
    (folder / "training" / "metrics.jsonl").write_text("no metrics\n")

    with pytest.raises(WorkspaceError, match="metrics.jsonl: not a metrics file of this version"):
        read_run(workspace, "run-1")


def test_a_damaged_report_of_a_step_is_named(workspace: Workspace) -> None:
    folder = write_run(workspace, "run-1")
    (folder / "raw" / "source.json").write_text("{")

    with pytest.raises(WorkspaceError, match="source.json: cannot be read"):
        read_run(workspace, "run-1")


def test_the_newest_runs_are_chosen_by_when_they_began(workspace: Workspace) -> None:
    for place, name in enumerate(("zebra", "ant", "mole")):
        write_run(workspace, name, last_step="raw", started_seconds=1.8e9 + place)

    assert run_names(workspace) == ["zebra", "ant", "mole"]
    assert choose_runs(workspace, [], 2) == ["ant", "mole"]
    assert choose_runs(workspace, ["mole", "zebra"], 1) == ["mole", "zebra"]


def test_one_run_is_nothing_to_compare(workspace: Workspace) -> None:
    write_run(workspace, "run-1", last_step="raw")

    with pytest.raises(ConfigError, match="nothing to compare: give two runs.*run-1"):
        choose_runs(workspace, ["run-1"], 0)


def test_a_run_id_cannot_leave_the_workspace(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="cannot be a folder name"):
        choose_runs(workspace, ["../models", "run-1"], 0)
