"""Publishing a model that passed."""

from pathlib import Path

import orjson
import pytest

from osft.errors import WorkspaceError
from osft.promotion import promote_model
from osft.workspace import Manifest, Workspace, write_json


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def finish_run(workspace: Workspace, run_id: str, *, passed: bool = True) -> tuple[Manifest, Manifest]:
    """Leave the folders of a finished run; return the manifests of training and evaluation."""

    def write_source(directory: Path) -> None:
        write_json(directory / "source.json", {"uri": "x.jsonl", "sha256": "00"})

    def write_model(directory: Path) -> None:
        (directory / "final").mkdir()
        (directory / "final" / "model.safetensors").write_text(f"weights of {run_id}")
        (directory / "metrics.jsonl").touch()

    def write_scores(directory: Path) -> None:
        write_json(directory / "forgetting.json", {"forgetting": 0.01, "passed": passed, "reasons": ["Too much."]})

    workspace.complete(run_id, "raw", inputs={"uri": "x.jsonl"}, work=write_source)
    for step in ("valid", "processed", "baseline"):
        workspace.complete(run_id, step, inputs={}, work=lambda directory: None)
    training = workspace.complete(run_id, "training", inputs={"model_path": "base"}, work=write_model)
    inputs = {"trained": training.fingerprint}
    return training, workspace.complete(run_id, "evaluation", inputs=inputs, work=write_scores)


def promote(workspace: Workspace, run_id: str, model_name: str = "ours") -> Manifest:
    training, evaluation = finish_run(workspace, run_id)
    return promote_model(workspace, run_id=run_id, model_name=model_name, training=training, evaluation=evaluation)


def test_each_run_becomes_the_next_version_and_latest_names_the_newest(workspace: Workspace) -> None:
    first, second = promote(workspace, "run-a"), promote(workspace, "run-b")

    assert (first.path, second.path) == ("models/ours/v0001", "models/ours/v0002")
    assert (workspace.models / "ours/latest").read_text() == "v0002\n"
    assert (workspace.models / "ours/v0001/model.safetensors").read_text() == "weights of run-a"
    assert not (workspace.models / "ours/v0001/metrics.jsonl").exists()


def test_the_lineage_says_where_the_model_comes_from_and_what_it_scored(workspace: Workspace) -> None:
    promote(workspace, "run-a")

    lineage = orjson.loads((workspace.models / "ours/v0001/lineage.json").read_bytes())
    assert lineage["run_id"] == "run-a"
    assert lineage["base_model"] == "base"
    assert lineage["osft_version"]
    assert lineage["data"] == {"uri": "x.jsonl", "sha256": "00"}
    assert lineage["parameters"]["raw"] == {"uri": "x.jsonl"}
    assert lineage["scores"]["forgetting"] == 0.01
    assert set(lineage["file_hashes"]["training"]) == {"final/model.safetensors", "metrics.jsonl"}


def test_a_run_is_promoted_once(workspace: Workspace) -> None:
    first = promote(workspace, "run-a")
    again = promote(workspace, "run-a")

    assert first == again
    assert not (workspace.models / "ours/v0002").exists()


def test_what_a_killed_promotion_left_is_not_a_version_and_does_not_hinder(workspace: Workspace) -> None:
    partial = workspace.models / "ours" / ".run-a.partial"
    partial.mkdir(parents=True)
    (partial / "half").touch()

    manifest = promote(workspace, "run-a")

    assert {file.name for file in manifest.files} == {"model.safetensors", "lineage.json"}
    assert not partial.exists()


def test_a_model_that_was_changed_after_training_is_not_published(workspace: Workspace) -> None:
    training, evaluation = finish_run(workspace, "run-a")
    (workspace.root / training.path / "final/model.safetensors").write_text("something else")

    with pytest.raises(WorkspaceError, match=r"final/model\.safetensors is not what the training step left"):
        promote_model(workspace, run_id="run-a", model_name="ours", training=training, evaluation=evaluation)
    assert not (workspace.models / "ours/v0001").exists()


def test_a_model_that_lost_a_file_after_training_is_not_published(workspace: Workspace) -> None:
    training, evaluation = finish_run(workspace, "run-a")
    (workspace.root / training.path / "final/model.safetensors").unlink()

    with pytest.raises(WorkspaceError, match=r"final/model\.safetensors is not what the training step left"):
        promote_model(workspace, run_id="run-a", model_name="ours", training=training, evaluation=evaluation)


def test_a_model_that_did_not_pass_is_not_published(workspace: Workspace) -> None:
    training, evaluation = finish_run(workspace, "run-a", passed=False)

    with pytest.raises(WorkspaceError, match=r"runs/run-a/training did not pass: Too much\. It is not published"):
        promote_model(workspace, run_id="run-a", model_name="ours", training=training, evaluation=evaluation)


def test_an_evaluation_of_another_model_lets_nothing_pass(workspace: Workspace) -> None:
    training, _ = finish_run(workspace, "run-a")
    _, evaluation = finish_run(workspace, "run-b")

    with pytest.raises(WorkspaceError, match=r"runs/run-b/evaluation evaluated another model than runs/run-a/training"):
        promote_model(workspace, run_id="run-a", model_name="ours", training=training, evaluation=evaluation)


def test_a_folder_that_is_no_version_is_left_alone_and_its_number_is_not_taken(workspace: Workspace) -> None:
    stray = workspace.models / "ours" / "v0001"
    stray.mkdir(parents=True)
    (stray / "notes.txt").touch()

    manifest = promote(workspace, "run-a")

    assert manifest.path == "models/ours/v0002"
    assert (stray / "notes.txt").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_model_name_that_is_no_folder_name_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(WorkspaceError, match=f"model name '{name}' cannot be a folder name"):
        promote(workspace, "run-a", model_name=name)
