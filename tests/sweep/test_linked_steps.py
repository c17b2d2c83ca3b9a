import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.errors import WorkspaceError
from osft.sweep.linked_steps import link_step
from osft.workspace import Manifest, Workspace
from tests.sweep.killed_links import KILLED, train
from tests.versions.finished_runs import set_age


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_linked_step_has_the_same_files_and_inputs_in_a_folder_of_its_own(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")

    linked = link_step(workspace, step, "other", "training")

    assert linked.path == "runs/other/training"
    assert (linked.files, linked.inputs) == (step.files, step.inputs)
    assert Manifest.load(workspace.root / linked.path / "manifest.json") == linked
    assert (workspace.root / linked.path / "final/weights").read_text() == "weights"


def test_a_linked_step_takes_no_room_for_its_files(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")

    linked = link_step(workspace, step, "other", "training")

    assert all(
        (workspace.root / step.path / file.name).samefile(workspace.root / linked.path / file.name)
        for file in step.files
    )


def test_a_linked_step_outlives_the_run_that_it_came_from(workspace: Workspace) -> None:
    linked = link_step(workspace, train(workspace, "one", "weights"), "other", "training")

    shutil.rmtree(workspace.run_directory("one"))

    assert (workspace.root / linked.path / "final/weights").read_text() == "weights"


def test_a_step_that_is_linked_already_is_left(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")
    first = link_step(workspace, step, "other", "training")
    folder = (workspace.root / first.path).stat()

    again = link_step(workspace, step, "other", "training")

    assert again == first
    assert (workspace.root / first.path).stat() == folder


def test_another_step_replaces_the_one_that_is_linked(workspace: Workspace) -> None:
    link_step(workspace, train(workspace, "one", "weights"), "other", "training")

    linked = link_step(workspace, train(workspace, "two", "better"), "other", "training")

    assert (workspace.root / linked.path / "final/weights").read_text() == "better"
    assert [path.name for path in workspace.run_directory("other").iterdir()] == ["training"]


def test_what_a_killed_try_has_left_is_no_part_of_the_step(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")
    partial = workspace.run_directory("other") / f"training.{socket.gethostname()}.partial"
    partial.mkdir(parents=True)
    (partial / "half").touch()

    linked = link_step(workspace, step, "other", "training")

    assert sorted(path.name for path in (workspace.root / linked.path).iterdir()) == [
        "final",
        "manifest.json",
        "metrics",
    ]
    assert not partial.exists()


def test_a_linked_step_is_as_old_as_the_one_that_it_came_from(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")
    set_age(workspace, "one", 4000)

    link_step(workspace, step, "other", "training")

    assert times(workspace, "other") == times(workspace, "one")


def times(workspace: Workspace, run_id: str) -> dict[str, int]:
    step = workspace.run_directory(run_id) / "training"
    return {path.relative_to(step).as_posix(): path.stat().st_mtime_ns for path in (step, *step.rglob("*"))}


@pytest.fixture
def another_pod(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what lets another pod do something between the look at a step's folder and its renaming."""

    def interrupt(work: Callable[[], object]) -> None:
        replace = Path.replace

        def replace_after_another_pod(self: Path, target: Path) -> Path:
            if self.suffix == ".partial":
                monkeypatch.setattr(Path, "replace", replace)
                monkeypatch.setattr(socket, "gethostname", lambda: "another")
                work()
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", replace_after_another_pod)

    return interrupt


def test_a_step_that_another_pod_links_at_the_same_moment_is_there_once(
    workspace: Workspace, another_pod: Callable[[Callable[[], object]], None]
) -> None:
    step = train(workspace, "one", "weights")
    another_pod(lambda: link_step(workspace, step, "other", "training"))

    linked = link_step(workspace, step, "other", "training")

    assert Manifest.load(workspace.root / linked.path / "manifest.json") == linked
    assert [path.name for path in workspace.run_directory("other").iterdir()] == ["training"]


def test_another_step_that_another_pod_links_at_the_same_moment_is_not_taken_for_this_one(
    workspace: Workspace, another_pod: Callable[[Callable[[], object]], None]
) -> None:
    step, other = train(workspace, "one", "weights"), train(workspace, "two", "others")
    another_pod(lambda: link_step(workspace, other, "other", "training"))

    with pytest.raises(OSError, match="Directory not empty"):
        link_step(workspace, step, "other", "training")


def test_a_step_whose_files_have_changed_is_not_linked(workspace: Workspace) -> None:
    step = train(workspace, "one", "weights")
    (workspace.root / step.path / "final/weights").write_text("cut")

    with pytest.raises(WorkspaceError, match="runs/one/training/final/weights is not what the step left. Run the step"):
        link_step(workspace, step, "other", "training")

    assert not (workspace.run_directory("other") / "training").exists()


@pytest.mark.slow
def test_a_linking_that_was_killed_at_any_moment_leaves_nothing_half_and_is_done_again(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_links.py"), tmp_path],
        capture_output=True, text=True, check=True, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    attempts: list[dict[str, Any]] = json.loads(finished.stdout)
    assert [attempt["code"] for attempt in attempts] == [KILLED] * (len(attempts) - 1) + [0]
    assert {attempt["left"] for attempt in attempts} == {"old", "none", "new"}
    assert all((attempt["again"], attempt["after"]) == (0, "new") for attempt in attempts)
