"""The shared volume: atomic writes, manifests, and steps that are done once."""

import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.errors import MissingPathError, WorkspaceError
from osft.workspace import Manifest, Workspace, atomic_file, replace_directory, safe_name, sha256_of_file, write_json


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    root.mkdir()
    return Workspace(root)


def write_one_file(directory: Path) -> None:
    (directory / "rows.jsonl").write_text("{}\n")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"

    with atomic_file(target, "w") as file:
        file.write("half")
        file.flush()
        assert not target.exists()

    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["file.txt"]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    with pytest.raises(KeyError), atomic_file(target, "w") as file:
        file.write("new")
        raise KeyError

    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "target", tmp_path / "new"
    for folder, name in ((old, "old.txt"), (new, "new.txt")):
        folder.mkdir()
        (folder / name).touch()

    replace_directory(new, old)

    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(old) == ["new.txt"]


def test_a_step_leaves_its_files_and_a_manifest_that_describes_them(workspace: Workspace) -> None:
    manifest = workspace.complete("run-1", "raw", inputs={"uri": "x"}, work=write_one_file)

    folder = workspace.root / "runs" / "run-1" / "raw"
    (file,) = manifest.files
    assert manifest.path == "runs/run-1/raw"
    assert (file.name, file.size_bytes) == ("rows.jsonl", 3)
    assert file.sha256 == sha256_of_file(folder / "rows.jsonl")
    assert Manifest.load(folder / "manifest.json") == manifest


def test_a_finished_step_with_the_same_inputs_is_not_done_again(workspace: Workspace) -> None:
    calls = []

    def work(directory: Path) -> None:
        calls.append(directory)
        write_one_file(directory)

    inputs = {"uri": "x", "names": ("a", "b"), "ratio": 0.1}
    first = workspace.complete("run-1", "raw", inputs=inputs, work=work)
    second = workspace.complete("run-1", "raw", inputs=inputs, work=work)
    workspace.complete("run-1", "raw", inputs={**inputs, "ratio": 0.2}, work=work)
    workspace.complete("run-2", "raw", inputs=inputs, work=work)

    assert first == second
    assert len(calls) == 3


def test_a_step_whose_file_was_lost_is_done_again(workspace: Workspace) -> None:
    workspace.complete("run-1", "raw", inputs={}, work=write_one_file)
    lost = workspace.root / "runs/run-1/raw/rows.jsonl"
    lost.unlink()

    workspace.complete("run-1", "raw", inputs={}, work=write_one_file)

    assert lost.exists()


def test_nothing_that_a_killed_attempt_left_is_published_by_the_next(workspace: Workspace) -> None:
    def killed(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.complete("run-1", "raw", inputs={}, work=killed)
    manifest = workspace.complete("run-1", "raw", inputs={}, work=write_one_file)

    assert [file.name for file in manifest.files] == ["rows.jsonl"]
    assert sorted(os.listdir(workspace.root / "runs/run-1/raw")) == ["manifest.json", "rows.jsonl"]


def test_a_resumable_step_goes_on_from_what_a_killed_attempt_left(workspace: Workspace) -> None:
    def killed(directory: Path) -> None:
        (directory / "rows.jsonl").write_text("on")
        raise KeyboardInterrupt

    def go_on(directory: Path) -> None:
        with (directory / "rows.jsonl").open("a") as file:
            file.write("e\n")

    with pytest.raises(KeyboardInterrupt):
        workspace.complete("run-1", "raw", inputs={}, work=killed, resumable=True)
    workspace.complete("run-1", "raw", inputs={}, work=go_on, resumable=True)

    assert (workspace.root / "runs/run-1/raw/rows.jsonl").read_text() == "one\n"
    assert os.listdir(workspace.root / "runs/run-1") == ["raw"]


def test_of_two_attempts_at_once_the_first_to_finish_counts(workspace: Workspace) -> None:
    def overtaken(directory: Path) -> None:
        write_one_file(directory)
        # Another pod has a folder of its own; here its outcome is put where it would be.
        other = Workspace(workspace.root.parent / "other")
        other.root.mkdir()
        other.complete("run-1", "raw", inputs={}, work=lambda d: (d / "rows.jsonl").write_text("first\n"))
        (other.root / "runs/run-1/raw").rename(workspace.root / "runs/run-1/raw")

    manifest = workspace.complete("run-1", "raw", inputs={}, work=overtaken)

    assert (workspace.root / "runs/run-1/raw/rows.jsonl").read_text() == "first\n"
    assert manifest.files[0].size_bytes == 6
    assert os.listdir(workspace.root / "runs/run-1") == ["raw"]


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_step_whose_manifest_is_damaged_is_done_again(workspace: Workspace, content: str) -> None:
    workspace.complete("run-1", "raw", inputs={}, work=write_one_file)
    (workspace.root / "runs/run-1/raw/manifest.json").write_text(content)

    manifest = workspace.complete("run-1", "raw", inputs={}, work=write_one_file)

    assert Manifest.load(workspace.root / "runs/run-1/raw/manifest.json") == manifest


def test_a_step_that_fails_leaves_no_folder_of_its_name(workspace: Workspace) -> None:
    def fail(directory: Path) -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 the error is our own, without a message
        workspace.complete("run-1", "raw", inputs={}, work=fail)

    assert not (workspace.root / "runs/run-1/raw").exists()


def test_a_fingerprint_is_that_of_the_files_wherever_they_are(workspace: Workspace) -> None:
    first = workspace.complete("run-1", "raw", inputs={"a": 1}, work=write_one_file)
    second = workspace.complete("run-2", "raw", inputs={"a": 2}, work=write_one_file)
    other = workspace.complete("run-3", "raw", inputs={}, work=lambda d: (d / "rows.jsonl").write_text("[]\n"))

    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("path", ["/etc", "../outside", "runs/../../outside", "link/inside"])
def test_a_path_that_leaves_the_workspace_is_refused(workspace: Workspace, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "inside").touch()
    (workspace.root / "link").symlink_to(outside)

    with pytest.raises(WorkspaceError, match="leaves the workspace"):
        workspace.resolve(path)


def test_a_path_with_nothing_there_is_missing(workspace: Workspace) -> None:
    with pytest.raises(MissingPathError, match="'runs/none' does not exist in the workspace"):
        workspace.resolve("runs/none")


def test_a_pvc_reference_becomes_a_path_and_anything_else_stays(workspace: Workspace) -> None:
    (workspace.root / "models").mkdir()

    assert workspace.locate("pvc://models") == str(workspace.root / "models")
    assert workspace.locate("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert workspace.locate("") == ""


def test_a_workspace_that_is_not_mounted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path / "none"))

    with pytest.raises(MissingPathError, match="none: the workspace does not exist. Mount the volume there"):
        Workspace.from_environment()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 1}', '{"schema": "x", "path": "p", "files": []}'])
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)

    with pytest.raises(WorkspaceError, match="no osft.manifest/v1 manifest"):
        Manifest.load(path)


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"schema": "osft.manifest/v2", "path": "p", "files": [], "inputs": {}})

    with pytest.raises(WorkspaceError, match=r"schema 'osft\.manifest/v2', not osft\.manifest/v1"):
        Manifest.load(path)


@given(name=st.text(max_size=20))
def test_a_safe_name_can_only_name_a_folder_right_here(name: str) -> None:
    try:
        safe = safe_name(name, what="run id")
    except WorkspaceError as error:
        assert "cannot be a folder name" in str(error)
    else:
        assert safe not in {"", ".", ".."}
        assert "/" not in safe
        assert "\0" not in safe


def test_json_is_written_with_numpy_values_and_read_back(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "x.json"

    write_json(path, {"value": np.float64(0.5), "counts": np.arange(2)})

    assert orjson.loads(path.read_bytes()) == {"value": 0.5, "counts": [0, 1]}
