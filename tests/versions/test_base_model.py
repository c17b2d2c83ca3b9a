"""What a run starts from."""

import shutil
from pathlib import Path

import pytest

from osft.errors import ConfigError, MissingPathError, WorkspaceError
from osft.versions.base_model import BaseModel, resolve_base
from osft.versions.folders import announce_pruning, has_weights, settle_pruning
from osft.versions.pruning import prune
from osft.versions.rollback import rollback
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, begin_run, promote


def resolve(
    workspace: Workspace, model_base: str, *, run_id: str = "new", origin: str = "org/base", model_name: str = MODEL
) -> BaseModel:
    manifest = resolve_base(
        workspace, run_id=run_id, model_base=model_base, model_origin=origin, promote_model_name=model_name
    )
    return BaseModel.load(workspace.resolve(manifest.path))


@pytest.mark.parametrize("model", ["org/model", "/a/path", "some/folder"])
def test_a_model_from_outside_is_taken_as_it_is(workspace: Workspace, model: str) -> None:
    base = resolve(workspace, model)

    assert (base.reference, base.model, base.origin) == (model, model, model)
    assert (base.parent, base.current, base.memory) == (None, None, None)
    assert (base.earlier_holdouts, base.ancestor_measurements) == ({}, {})
    assert (base.seen_rows, base.held_out_rows, base.too_long_rows) == ((), (), {})


def test_the_origin_stands_in_while_nothing_is_promoted(workspace: Workspace) -> None:
    base = resolve(workspace, "promoted://ours")

    assert (base.reference, base.model, base.origin) == ("promoted://ours", "org/base", "org/base")
    assert (base.parent, base.current) == (None, None)


def test_the_current_version_comes_with_what_it_and_its_ancestors_left(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id, memory=True)

    base = resolve(workspace, "promoted://ours", origin="org/of-no-use")

    assert (base.model, base.origin) == ("pvc://models/ours/v0002", "org/base")
    assert workspace.locate(base.model) == str(workspace.models / "ours/v0002")
    assert (base.parent, base.current, base.memory) == ("v0002", "v0002", "models/ours/v0002/memory")
    assert list(base.earlier_holdouts.items()) == [
        ("holdout_v0001", "models/ours/v0001/holdout"),
        ("holdout_v0002", "models/ours/v0002/holdout"),
    ]
    assert base.seen_rows == ("models/ours/v0001/seen_rows.bin", "models/ours/v0002/seen_rows.bin")
    assert base.held_out_rows == ("models/ours/v0001/held_out_rows.bin", "models/ours/v0002/held_out_rows.bin")
    assert base.too_long_rows == {f"models/ours/{version}/too_long_rows.bin": 64 for version in ("v0001", "v0002")}
    assert list(base.ancestor_measurements.items()) == [
        ("v0000", "models/ours/v0001/origin/measurements"),
        ("v0001", "models/ours/v0001/measurements"),
        ("v0002", "models/ours/v0002/measurements"),
    ]


def test_a_run_that_is_retried_keeps_what_it_began_with(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    first = resolve(workspace, "promoted://ours")
    promote(workspace, "run-b")

    again = resolve(workspace, "promoted://ours")

    assert again == first
    assert again.current == "v0001"


def test_after_a_rollback_runs_descend_from_the_version_that_is_current_then(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)
    rollback(workspace, MODEL)

    base = resolve(workspace, "promoted://ours")

    assert (base.parent, base.current) == ("v0001", "v0001")
    assert list(base.earlier_holdouts) == ["holdout_v0001"]


@pytest.mark.parametrize("reference", ["pvc://models/ours/v0001", "{workspace}/models/ours/v0001"])
def test_a_version_that_is_given_by_its_path_is_known_as_the_parent(workspace: Workspace, reference: str) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)

    base = resolve(workspace, reference.format(workspace=workspace.root))

    assert (base.model, base.parent, base.current) == ("pvc://models/ours/v0001", "v0001", "v0002")
    assert list(base.earlier_holdouts) == ["holdout_v0001"]


def test_a_run_that_begins_from_another_models_version_starts_a_chain_of_its_own(workspace: Workspace) -> None:
    promote(workspace, "run-a", memory=True)

    base = resolve(workspace, "promoted://ours", model_name="theirs")

    assert (base.model, base.origin) == ("pvc://models/ours/v0001", "pvc://models/ours/v0001")
    assert (base.parent, base.current, base.memory) == (None, None, "models/ours/v0001/memory")
    assert base.earlier_holdouts == {}


@pytest.mark.parametrize("origin", ["pvc://models/ours/v0001", "{workspace}/models/ours/v0001"])
def test_an_origin_that_is_another_models_version_comes_with_its_memory(workspace: Workspace, origin: str) -> None:
    promote(workspace, "run-a", memory=True)

    base = resolve(workspace, "promoted://theirs", origin=origin.format(workspace=workspace.root), model_name="theirs")

    assert (base.model, base.origin) == ("pvc://models/ours/v0001", "pvc://models/ours/v0001")
    assert (base.parent, base.memory) == (None, "models/ours/v0001/memory")


@pytest.mark.parametrize(
    ("reference", "starts"),
    [("org/other", "org/other"), ("pvc://models/ours/v0001", "pvc://models/ours/v0001")],
)
def test_a_run_that_does_not_start_from_the_current_version_says_what_that_means(
    workspace: Workspace, caplog: pytest.LogCaptureFixture, reference: str, starts: str
) -> None:
    for run_id in ("run-a", "run-b"):
        promote(workspace, run_id)

    resolve(workspace, reference)

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"'ours': the run starts from {starts} and not from the current version v0002. If it passes, its model "
        "replaces v0002, and later runs do not have what v0002 learnt. To go on from it, set model_base to "
        "promoted://ours."
    ]


def test_a_run_that_goes_on_with_its_chain_warns_of_nothing(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    promote(workspace, "run-a")

    resolve(workspace, "promoted://ours")

    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_misspelt_name_does_not_start_from_the_origin(workspace: Workspace) -> None:
    promote(workspace, "run-a")

    with pytest.raises(
        ConfigError,
        match="model_base is 'promoted://our', of which nothing is promoted, and promote_model_name is 'ours'. "
        r"Did you mean ours\?",
    ):
        resolve(workspace, "promoted://our")
    assert not (workspace.root / "runs/new/base").exists()


def test_a_run_takes_back_a_pruning_that_has_only_been_announced(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    version = workspace.models / "ours/v0001"
    announcement = announce_pruning(version)

    resolve(workspace, "promoted://ours")

    assert not settle_pruning(announcement)
    assert has_weights(version)


def test_a_run_whose_version_was_pruned_meanwhile_is_told_so(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    resolve(workspace, "promoted://ours")
    settle_pruning(announce_pruning(workspace.models / "ours/v0001"))

    with pytest.raises(
        WorkspaceError, match="'pvc://models/ours/v0001': its weights were pruned after this run had begun. Start a new"
    ):
        resolve(workspace, "promoted://ours")


def test_what_a_version_never_had_is_left_out(workspace: Workspace) -> None:
    promote(workspace, "run-a", held_out_rows=0)
    shutil.rmtree(workspace.models / "ours/v0001/origin")
    shutil.rmtree(workspace.models / "ours/v0001/measurements")

    base = resolve(workspace, "promoted://ours")

    assert (base.memory, base.earlier_holdouts, base.ancestor_measurements) == (None, {}, {})


def test_rows_that_were_seen_are_asked_for_even_if_their_list_is_lost(workspace: Workspace) -> None:
    promote(workspace, "run-a")
    (workspace.models / "ours/v0001/seen_rows.bin").unlink()

    base = resolve(workspace, "promoted://ours")

    assert base.seen_rows == ("models/ours/v0001/seen_rows.bin",)


@pytest.mark.parametrize("origin", ["", "promoted://ours"])
def test_without_a_version_and_without_an_origin_there_is_nothing_to_begin_from(
    workspace: Workspace, origin: str
) -> None:
    with pytest.raises(ConfigError, match=r"model_base is 'promoted://ours', of which nothing is promoted yet, and"):
        resolve(workspace, "promoted://ours", origin=origin)


def test_an_empty_base_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="model_base is empty"):
        resolve(workspace, "")


def test_a_path_that_does_not_exist_is_refused_before_anything_is_done(workspace: Workspace) -> None:
    with pytest.raises(MissingPathError, match="'models/ours/v0009' does not exist"):
        resolve(workspace, "pvc://models/ours/v0009")


def test_a_version_whose_weights_are_pruned_is_no_base(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b", "run-c"):
        promote(workspace, run_id)
    prune(workspace, MODEL, keep_versions=1, keep_runs=0)

    with pytest.raises(WorkspaceError, match=r"the weights of \S+/models/ours/v0001 are pruned"):
        resolve(workspace, "pvc://models/ours/v0001")


def test_the_base_is_read_from_its_file_and_from_its_folder(workspace: Workspace) -> None:
    manifest = begin_run(workspace, "run-a")
    folder = workspace.resolve(manifest.path)

    assert BaseModel.load(folder) == BaseModel.load(folder / "base.json")


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"base\.json: no base of a run"):
        BaseModel.load(tmp_path / "base.json")
