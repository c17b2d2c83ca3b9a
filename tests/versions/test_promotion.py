"""Publishing a model that passed."""

from typing import Any

import pytest

from osft.errors import WorkspaceError
from osft.evaluation.identity import model_fingerprint
from osft.evaluation.measurement import TaskMeasurement
from osft.versions.base_model import BaseModel
from osft.versions.journal import Journal, LostRaceError
from osft.versions.lineage import chain_of, read_lineage
from osft.versions.promotion import promote_model
from osft.versions.rollback import rollback
from osft.workspace import Manifest, Workspace
from tests.versions.finished_runs import MODEL, begin_run, finish_run, promote, read_manifests


def promote_again(workspace: Workspace, run_id: str, **changes: Any) -> Manifest:
    arguments = {"run_id": run_id, "model_name": MODEL, **read_manifests(workspace, run_id), **changes}
    return promote_model(workspace, **arguments)


def folders_of(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.models / MODEL).iterdir()}


def test_each_run_becomes_the_next_version_and_latest_names_the_current_one(workspace: Workspace) -> None:
    first, second = promote(workspace, "run-a"), promote(workspace, "run-b")

    assert (first.path, second.path) == ("models/ours/v0001", "models/ours/v0002")
    assert (workspace.models / "ours/latest").read_text() == "v0002\n"
    assert (workspace.models / "ours/v0001/model.safetensors").read_text() == "weights of run-a"
    assert not (workspace.models / "ours/v0001/metrics.jsonl").exists()
    assert [entry.run_id for entry in Journal(workspace, MODEL).entries()] == ["run-a", "run-b"]


def test_the_lineage_says_where_the_model_comes_from_and_what_it_scored(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)

    lineage = read_lineage(workspace, MODEL, "v0002")

    assert (lineage.run_id, lineage.parent, lineage.replaced) == ("run-b", "v0001", "v0001")
    assert (lineage.origin, lineage.origin_fingerprint) == ("org/base", "origin's")
    assert lineage.data == {"uri": "x.jsonl", "sha256": "00", "rows": 9, "rows_train": 7}
    assert lineage.parameters["training"] == {"learning_rate": 1e-3}
    assert set(lineage.file_hashes["training"]) == {"final/model.safetensors", "final/config.json", "metrics.jsonl"}
    assert set(lineage.software) == {"osft-continual-learning", "torch"}
    assert [(score.task, score.kind, score.before, score.after) for score in lineage.scores] == [
        ("parity", "retention", 0.5, 0.75),
        ("holdout_v0002", "target", 0.5, 0.75),
    ]
    assert lineage.evaluation["forgetting"] == 0.01


def test_a_version_carries_what_the_runs_after_it_need(workspace: Workspace) -> None:
    manifest = promote(workspace, "run-a", memory=True)

    version = workspace.models / "ours/v0001"
    assert {file.name for file in manifest.files} == {
        "config.json", "model.safetensors", "lineage.json", "memory/memory.safetensors", "seen_rows.bin",
        "held_out_rows.bin", "too_long_rows.bin", "holdout/holdout.parquet", "measurements/parity.parquet",
        "measurements/holdout_v0001.parquet", "origin/lineage.json", "origin/measurements/parity.parquet",
        "origin/measurements/holdout_v0001.parquet",
    }  # fmt: skip
    assert (version / "memory/memory.safetensors").read_text() == "memory of run-a"
    assert (version / "seen_rows.bin").read_bytes() == b"trained run-aheldout run-a"
    assert (version / "held_out_rows.bin").read_bytes() == b"heldout run-a"
    assert TaskMeasurement.load(version / "measurements/holdout_v0001.parquet").task == "holdout_v0001"
    # The evaluation after the promotion knows the model as the one that was trained.
    trained = workspace.root / "runs/run-a/training/final"
    assert model_fingerprint(version, memo=None) == model_fingerprint(trained, memo=None)


def test_a_run_that_held_nothing_out_leaves_no_permanent_task(workspace: Workspace) -> None:
    promote(workspace, "run-a", held_out_rows=0)

    assert not (workspace.models / "ours/v0001/holdout").exists()
    assert read_lineage(workspace, MODEL, "v0001").learned_task is None


def test_the_origin_becomes_a_version_without_weights_that_knows_what_it_scored(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)

    origin, *_ = chain = chain_of(workspace, MODEL)

    assert [lineage.version for lineage in chain] == ["v0000", "v0001", "v0002"]
    assert [(score.task, score.before, score.after) for score in origin.scores] == [
        ("parity", None, 0.5),
        ("holdout_v0001", None, 0.5),
    ]
    folder = workspace.models / "ours/v0001/origin"
    assert TaskMeasurement.load(folder / "measurements/holdout_v0001.parquet").value == 0.5
    assert not list(folder.glob("*.safetensors"))


def test_each_chain_keeps_what_its_own_origin_scored(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    base = begin_run(workspace, "run-b", model_base="org/other")
    training, evaluation = finish_run(workspace, "run-b", fingerprint="other's")
    promote_model(workspace, run_id="run-b", model_name=MODEL, base=base, training=training, evaluation=evaluation)

    second = [(one.version, one.origin) for one in chain_of(workspace, MODEL)]
    rollback(workspace, MODEL, "v0001")
    first = [(one.version, one.origin) for one in chain_of(workspace, MODEL)]

    assert second == [("v0000", "org/other"), ("v0002", "org/other")]
    assert first == [("v0000", "org/base"), ("v0001", "org/base")]
    start = BaseModel.load(workspace.resolve(begin_run(workspace, "run-c").path))
    assert start.ancestor_measurements["v0000"] == "models/ours/v0001/origin/measurements"


def test_what_the_parent_answers_to_tasks_that_are_new_joins_its_other_answers(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    measurements = workspace.models / "ours/v0001/measurements"
    before = {path.name: path.read_bytes() for path in measurements.iterdir()}

    promote(workspace, "run-b")

    after = {path.name: path.read_bytes() for path in measurements.iterdir()}
    assert set(after) - set(before) == {"holdout_v0002.parquet"}
    assert TaskMeasurement.load(measurements / "holdout_v0002.parquet").value == 0.5
    assert {name: after[name] for name in before} == before


def test_what_the_parent_answers_is_kept_by_a_promotion_that_was_killed_before(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)
    added = workspace.models / "ours/v0001/measurements/holdout_v0002.parquet"
    added.unlink()

    promote_again(workspace, "run-b")

    assert added.exists()


def test_a_run_is_promoted_once(workspace: Workspace) -> None:
    first = promote(workspace, "run-a")
    again = promote_again(workspace, "run-a")

    assert first == again
    assert folders_of(workspace) == {"v0001", "history", "latest"}


def test_a_run_that_was_promoted_stays_so_when_others_followed(workspace: Workspace) -> None:
    first = promote(workspace, "run-a")
    promote(workspace, "run-b")

    again = promote_again(workspace, "run-a")

    assert first == again
    assert (workspace.models / "ours/latest").read_text() == "v0002\n"


def test_the_slower_of_two_runs_is_not_promoted_and_is_told_who_won(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    for run_id in ("run-b", "run-c"):
        begin_run(workspace, run_id)
        finish_run(workspace, run_id)
    promote_again(workspace, "run-c")

    with pytest.raises(
        LostRaceError,
        match=r"models/ours: v0001 was to be the current version still, but v0002 is, by the promotion of run 'run-c' "
        r"at \S+\. Start a new run \(not a retry of this one\)\.",
    ):
        promote_again(workspace, "run-b")
    assert folders_of(workspace) == {"v0001", "v0002", "history", "latest"}


def test_a_run_that_began_before_anything_was_promoted_loses_against_the_first_version(workspace: Workspace) -> None:
    begin_run(workspace, "run-b")
    finish_run(workspace, "run-b")
    promote(workspace, "run-a")

    with pytest.raises(LostRaceError, match="no version was to be the current version still, but v0001 is"):
        promote_again(workspace, "run-b")


def test_a_run_whose_version_is_rolled_back_meanwhile_loses(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)
    begin_run(workspace, "run-c")
    finish_run(workspace, "run-c")
    rollback(workspace, MODEL)

    with pytest.raises(LostRaceError, match="but v0001 is, by a rollback at"):
        promote_again(workspace, "run-c")


def test_what_a_killed_promotion_left_is_not_a_version_and_does_not_hinder(workspace: Workspace) -> None:
    left = workspace.models / "ours" / ".run-a@another-host.partial"
    left.mkdir(parents=True)
    (left / "half").touch()

    manifest = promote(workspace, "run-a")

    assert manifest.path == "models/ours/v0001"
    assert not left.exists()


def test_a_number_that_the_journal_knows_is_not_given_again(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    (workspace.models / "ours/v0001").rename(workspace.root / "put elsewhere")

    base = begin_run(workspace, "run-b", model_base="org/base")
    training, evaluation = finish_run(workspace, "run-b")
    arguments = {"base": base, "training": training, "evaluation": evaluation}
    manifest = promote_model(workspace, run_id="run-b", model_name=MODEL, **arguments)

    assert manifest.path == "models/ours/v0002"


@pytest.mark.parametrize("name", ["final/model.safetensors", "memory/memory.safetensors"])
def test_a_model_that_was_changed_after_training_is_not_published(workspace: Workspace, name: str) -> None:
    begin_run(workspace, "run-a")
    finish_run(workspace, "run-a", memory=True)
    (workspace.root / "runs/run-a/training" / name).write_text("something else")

    with pytest.raises(WorkspaceError, match=f"runs/run-a/training/{name} is not what the training step left"):
        promote_again(workspace, "run-a")
    assert not (workspace.models / "ours/v0001").exists()


def test_a_model_that_lost_a_file_after_training_is_not_published(workspace: Workspace) -> None:
    begin_run(workspace, "run-a")
    finish_run(workspace, "run-a")
    (workspace.root / "runs/run-a/training/final/model.safetensors").unlink()

    with pytest.raises(WorkspaceError, match=r"final/model\.safetensors is not what the training step left"):
        promote_again(workspace, "run-a")


def test_a_model_that_did_not_pass_is_not_published(workspace: Workspace) -> None:
    begin_run(workspace, "run-a")
    finish_run(workspace, "run-a", passed=False)

    with pytest.raises(WorkspaceError, match=r"runs/run-a/training did not pass: Too much\. It is not published"):
        promote_again(workspace, "run-a")


def test_an_evaluation_of_another_model_lets_nothing_pass(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        begin_run(workspace, run_id)
        finish_run(workspace, run_id)
    other = read_manifests(workspace, "run-b")["evaluation"]

    with pytest.raises(WorkspaceError, match=r"runs/run-b/evaluation evaluated another model than runs/run-a/training"):
        promote_again(workspace, "run-a", evaluation=other)


def test_a_run_cannot_be_promoted_under_another_name_than_it_began_with(workspace: Workspace) -> None:
    begin_run(workspace, "run-a")
    finish_run(workspace, "run-a")

    with pytest.raises(WorkspaceError, match="run 'run-a' began as one of 'ours' and cannot be promoted as 'theirs'"):
        promote_again(workspace, "run-a", model_name="theirs")


def test_a_folder_that_is_no_version_is_left_alone_and_its_number_is_not_taken(workspace: Workspace) -> None:
    stray = workspace.models / "ours" / "v0001"
    stray.mkdir(parents=True)
    (stray / "notes.txt").touch()

    manifest = promote(workspace, "run-a")

    assert manifest.path == "models/ours/v0002"
    assert (stray / "notes.txt").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_model_name_that_is_no_folder_name_is_refused(workspace: Workspace, name: str) -> None:
    promote(workspace, "run-a")

    with pytest.raises(WorkspaceError, match=f"model name '{name}' cannot be a folder name"):
        promote_again(workspace, "run-a", model_name=name)
    with pytest.raises(WorkspaceError, match=f"model name '{name}' cannot be a folder name"):
        begin_run(workspace, "run-b", model_name=name, model_base="org/base")
