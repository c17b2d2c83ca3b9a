"""Going back to an earlier version."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from osft.errors import MissingPathError, WorkspaceError
from osft.versions.folders import announce_pruning, has_weights, settle_pruning
from osft.versions.journal import Journal
from osft.versions.pruning import prune
from osft.versions.rollback import rollback
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, promote


def test_by_default_the_parent_of_the_current_version_becomes_current(chained: Workspace) -> None:
    entry = rollback(chained, MODEL)

    assert (entry.version, entry.replaced, entry.reason) == ("v0002", "v0003", "rollback")
    assert Journal(chained, MODEL).current() == "v0002"
    assert (chained.models / "ours/latest").read_text() == "v0002\n"
    assert (chained.models / "ours/v0003/model.safetensors").exists()


def test_a_rollback_can_be_taken_back(chained: Workspace) -> None:
    rollback(chained, MODEL, "v0001")

    rollback(chained, MODEL, "v0003")

    assert [entry.version for entry in Journal(chained, MODEL).entries()][3:] == ["v0001", "v0003"]


def test_the_next_version_is_numbered_above_all_that_ever_were(chained: Workspace) -> None:
    rollback(chained, MODEL, "v0001")

    assert promote(chained, "run-d").path == "models/ours/v0004"


def test_the_first_version_has_no_parent_to_go_back_to(workspace: Workspace) -> None:
    promote(workspace, "run-a")

    with pytest.raises(WorkspaceError, match=r"v0001 was trained from its origin 'org/base', so there is no parent"):
        rollback(workspace, MODEL)


@pytest.mark.parametrize("version", ["v0000", "v0009", "latest"])
def test_what_was_never_current_cannot_become_so(chained: Workspace, version: str) -> None:
    with pytest.raises(MissingPathError, match=f"model 'ours': '{version}' was never the current version"):
        rollback(chained, MODEL, version)


def test_the_current_version_is_no_place_to_go_back_to(chained: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="v0003 is the current version already"):
        rollback(chained, MODEL, "v0003")


def test_nothing_can_go_back_to_pruned_weights(chained: Workspace) -> None:
    prune(chained, MODEL, keep_versions=1, keep_runs=0)

    with pytest.raises(WorkspaceError, match=r"the weights of v0001 are pruned.*Those of v0002, v0003 are there\."):
        rollback(chained, MODEL, "v0001")
    assert Journal(chained, MODEL).current() == "v0003"


def test_whichever_of_a_rollback_and_a_pruning_is_faster_the_current_version_has_its_weights(
    tmp_path: Path, chain_template: Callable[[int], Path]
) -> None:
    def roll_back(workspace: Workspace, start: Barrier) -> str:
        start.wait(60)
        try:
            return rollback(workspace, MODEL, "v0001").version
        except WorkspaceError as error:
            return str(error)

    def remove(workspace: Workspace, start: Barrier) -> int:
        start.wait(60)
        return len(prune(workspace, MODEL, keep_versions=1, keep_runs=0))

    for number in range(12):
        workspace, start = Workspace(tmp_path / str(number)), Barrier(2)
        shutil.copytree(chain_template(3), workspace.root)
        with ThreadPoolExecutor(2) as threads:
            rolled_back = threads.submit(roll_back, workspace, start)
            removed = threads.submit(remove, workspace, start)
        current = Journal(workspace, MODEL).current()
        assert (rolled_back.result() == "v0001") == (current == "v0001")
        assert has_weights(workspace.models / MODEL / str(current))
        assert current == "v0003" or removed.result() <= 1


def test_a_rollback_onto_weights_that_are_pruned_at_that_moment_is_taken_back(
    chained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def link_after_pruning(self: Path, target: Path) -> None:
        settle_pruning(announce_pruning(chained.models / "ours/v0001"))
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", link_after_pruning)

    with pytest.raises(WorkspaceError, match="v0001 was pruned as it became current, so v0003 is current again"):
        rollback(chained, MODEL, "v0001")
    assert [entry.version for entry in Journal(chained, MODEL).entries()][3:] == ["v0001", "v0003"]


def test_a_rollback_takes_back_a_pruning_that_has_only_been_announced(chained: Workspace) -> None:
    version = chained.models / "ours/v0001"
    announcement = announce_pruning(version)

    rollback(chained, MODEL, "v0001")

    assert not settle_pruning(announcement)
    assert has_weights(version)


def test_a_model_that_does_not_exist_is_named_with_those_that_do(chained: Workspace) -> None:
    with pytest.raises(MissingPathError, match=r"model 'our': nothing is promoted under .* Did you mean ours"):
        rollback(chained, "our")


def test_a_model_of_which_nothing_was_ever_current_has_nothing_to_go_back_to(workspace: Workspace) -> None:
    (workspace.models / "ours").mkdir(parents=True)

    with pytest.raises(WorkspaceError, match="model 'ours': no version was ever current"):
        rollback(workspace, MODEL)
