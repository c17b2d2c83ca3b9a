"""Keeping the storage bounded."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from osft.errors import ConfigError
from osft.sweep.choice_step import choose_model
from osft.versions import pruning
from osft.versions.base_model import resolve_base
from osft.versions.folders import announce_pruning, has_weights, settle_pruning, version_name
from osft.versions.lineage import chain_of
from osft.versions.promotion import promote_model
from osft.versions.pruning import PrunedItem, prune, pruned_as_markdown
from osft.versions.removal import remove_folder
from osft.versions.rollback import rollback
from osft.workspace import Workspace, write_json
from tests.sweep.sweeps import SWEEP, finish_ratio, prepare_sweep, right
from tests.versions.finished_runs import MODEL, begin_run, finish_run, promote, set_age
from tests.versions.killed_promotions import KILLED, in_fork

VERSIONS = 5


@pytest.fixture
def chained(workspace: Workspace, chain_template: Callable[[int], Path]) -> Workspace:
    """A workspace with five versions."""
    shutil.copytree(chain_template(VERSIONS), workspace.root, dirs_exist_ok=True)
    return workspace


def with_weights(workspace: Workspace) -> list[str]:
    names = [version_name(number) for number in range(1, VERSIONS + 1)]
    return [name for name in names if has_weights(workspace.models / MODEL / name)]


def runs_left(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.root / "runs").iterdir()}


def test_zero_keeps_everything(chained: Workspace) -> None:
    removed = prune(chained, MODEL, keep_versions=0, keep_runs=0)

    assert removed == []
    assert len(with_weights(chained)) == len(runs_left(chained)) == VERSIONS


def test_old_versions_lose_weights_and_memory_and_keep_what_later_runs_need(chained: Workspace) -> None:
    def files() -> set[str]:
        return {path.name for path in (chained.models / "ours/v0001").iterdir()}

    before = files()

    removed = prune(chained, MODEL, keep_versions=3, keep_runs=0)

    assert with_weights(chained) == ["v0003", "v0004", "v0005"]
    size = len("weights of run-1") + len("memory of run-1")
    assert removed == [PrunedItem(path=f"models/ours/{name}", size_bytes=size) for name in ("v0002", "v0001")]
    assert before - files() == {"model.safetensors", "memory"}
    assert files() - before == {"pruned"}
    assert len(chain_of(chained, MODEL)) == VERSIONS + 1


def test_what_is_pruned_is_listed_once(chained: Workspace) -> None:
    prune(chained, MODEL, keep_versions=3, keep_runs=3)

    assert prune(chained, MODEL, keep_versions=3, keep_runs=3) == []


def test_the_current_version_and_its_parent_keep_their_weights(chained: Workspace) -> None:
    rollback(chained, MODEL, "v0003")

    prune(chained, MODEL, keep_versions=1, keep_runs=0)

    assert with_weights(chained) == ["v0002", "v0003", "v0005"]


@pytest.mark.parametrize("model_name", [MODEL, "theirs"])
def test_a_version_from_which_a_run_starts_that_is_under_way_keeps_its_weights(
    chained: Workspace, model_name: str
) -> None:
    begin_run(chained, "slow", model_base="pvc://models/ours/v0001", model_name=model_name)

    prune(chained, MODEL, keep_versions=1, keep_runs=1)

    assert with_weights(chained) == ["v0001", "v0004", "v0005"]
    assert runs_left(chained) == {"run-5", "slow"}


def test_a_run_that_was_given_up_keeps_nothing(chained: Workspace) -> None:
    begin_run(chained, "failed", model_base="pvc://models/ours/v0001")
    set_age(chained, "failed", 15 * 24 * 3600)

    prune(chained, MODEL, keep_versions=1, keep_runs=2)

    assert with_weights(chained) == ["v0004", "v0005"]
    assert runs_left(chained) == {"run-4", "run-5"}


def test_a_run_that_is_about_to_be_promoted_stays_and_one_that_cannot_be_any_more_goes(chained: Workspace) -> None:
    for run_id, parent, passed in (("late", "v0005", True), ("refused", "v0005", False)):
        begin_run(chained, run_id, model_base=f"pvc://models/ours/{parent}")
        finish_run(chained, run_id, passed=passed)
        set_age(chained, run_id, 4000)

    prune(chained, MODEL, keep_versions=0, keep_runs=1)

    assert runs_left(chained) == {"run-5", "late"}


def test_runs_of_other_models_and_folders_that_are_no_runs_of_ours_stay(chained: Workspace) -> None:
    promote(chained, "other", model_name="theirs")
    (chained.root / "runs/notes").mkdir()

    prune(chained, MODEL, keep_versions=0, keep_runs=1)

    assert runs_left(chained) == {"run-5", "other", "notes"}


def test_the_oldest_runs_go_first(chained: Workspace) -> None:
    removed = prune(chained, MODEL, keep_versions=0, keep_runs=3)

    assert [item.path for item in removed] == ["runs/run-2", "runs/run-1"]
    assert all(item.size_bytes > 0 for item in removed)


def test_what_a_pruning_says_that_it_freed_is_gone_from_the_volume(workspace: Workspace) -> None:
    ratios = prepare_sweep(workspace)
    for run in ratios:
        finish_ratio(workspace, run, {"kept": right(100), "new": right(2)})
    choose_model(workspace, SWEEP, ratios)
    before = bytes_on_volume(workspace)

    removed = prune(workspace, MODEL, keep_versions=0, keep_runs=1)

    assert [item.path for item in removed] == ["runs/sweep-ratio-0.5", "runs/sweep-ratio-0.1"]
    assert sum(item.size_bytes for item in removed) == before - bytes_on_volume(workspace)


def bytes_on_volume(workspace: Workspace) -> int:
    """Return the size of all files, each counted once however many names it has."""
    files = {path.stat().st_ino: path.stat().st_size for path in workspace.root.rglob("*") if path.is_file()}
    return sum(files.values())


def test_a_pruning_that_was_killed_as_it_deleted_is_finished(chained: Workspace) -> None:
    version = chained.models / "ours/v0001"
    settle_pruning(announce_pruning(version))
    (version / "model.safetensors").unlink()

    removed = prune(chained, MODEL, keep_versions=0, keep_runs=0)

    assert [item.path for item in removed] == ["models/ours/v0001"]
    assert not (version / "memory").exists()


def test_a_pruning_that_is_killed_at_any_moment_leaves_the_versions_that_are_needed_and_is_done_again(
    chained: Workspace, tmp_path: Path
) -> None:
    # The versions before the current one are old, and its parent is.
    rollback(chained, MODEL, "v0003")
    codes: list[int] = []
    while not codes or codes[-1] == KILLED:
        workspace = Workspace(tmp_path / "copies" / str(len(codes)))
        shutil.copytree(chained.root / "models", workspace.models, copy_function=os.link)
        codes.append(in_fork(prune_old, workspace, MODEL, killed_at=len(codes) + 1))

        assert {"v0002", "v0003", "v0005"} <= set(with_weights(workspace))
        begin_run(workspace, "next")
        prune_old(workspace, MODEL)
        assert with_weights(workspace) == ["v0002", "v0003", "v0005"]
        assert not list((workspace.models / "ours/v0001").glob("*.safetensors"))
        assert not list((workspace.models / "ours").glob("v*/.pruning.*"))
    assert len(codes) > 5
    assert codes[-1] == 0


def prune_old(workspace: Workspace, model_name: str) -> None:
    prune(workspace, model_name, keep_versions=1, keep_runs=0)


@pytest.mark.parametrize("needed_by", ["rollback", "run"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_version_that_becomes_needed_while_its_pruning_is_announced_keeps_its_weights(
    chained: Workspace, monkeypatch: pytest.MonkeyPatch, moment: str, needed_by: str
) -> None:
    def begin_to_need(version: Path) -> None:
        if version.name == "v0001" and needed_by == "rollback":
            rollback(chained, MODEL, "v0001")
        elif version.name == "v0001":
            begin_run(chained, "meanwhile", model_base="pvc://models/ours/v0001")

    def announce(version: Path) -> Path:
        if moment == "before":
            begin_to_need(version)
        announcement = announce_pruning(version)
        if moment == "after":
            begin_to_need(version)
        return announcement

    monkeypatch.setattr(pruning, "announce_pruning", announce)

    prune(chained, MODEL, keep_versions=1, keep_runs=0)

    assert with_weights(chained) == ["v0001", "v0004", "v0005"]
    assert not list((chained.models / "ours").glob("v*/.pruning.*"))


def test_two_prunings_at_once_do_no_harm(tmp_path: Path, chain_template: Callable[[int], Path]) -> None:
    def remove(workspace: Workspace, start: Barrier) -> list[PrunedItem]:
        start.wait(60)
        return prune(workspace, MODEL, keep_versions=1, keep_runs=1)

    for number in range(6):
        workspace, start = Workspace(tmp_path / str(number)), Barrier(2)
        shutil.copytree(chain_template(VERSIONS), workspace.root)
        (workspace.root / "runs/.run-0.removed.x1y2").mkdir()
        with ThreadPoolExecutor(2) as threads:
            both = [threads.submit(remove, workspace, start) for _ in range(2)]
        removed = [item.path for one in both for item in one.result() if item.path.startswith("runs/run")]
        assert sorted(removed) == [f"runs/run-{run}" for run in range(1, VERSIONS)]
        assert runs_left(workspace) == {f"run-{VERSIONS}"}
        assert with_weights(workspace) == ["v0004", "v0005"]


def test_a_run_that_had_nothing_new_to_learn_is_finished(chained: Workspace) -> None:
    for number in (1, 2):
        run_id = f"nothing-new-{number}"
        begin_run(chained, run_id, model_base="pvc://models/ours/v0001")
        chained.complete(
            run_id, "valid", inputs={}, work=lambda step: write_json(step / "validation.json", {"rows_valid": 0})
        )
        set_age(chained, run_id, 10 - number)

    prune(chained, MODEL, keep_versions=1, keep_runs=1)

    assert with_weights(chained) == ["v0004", "v0005"]
    assert runs_left(chained) == {"nothing-new-2"}


def test_a_run_with_new_rows_is_under_way_after_they_were_checked(chained: Workspace) -> None:
    begin_run(chained, "new")
    chained.complete(
        "new", "valid", inputs={}, work=lambda step: write_json(step / "validation.json", {"rows_valid": 3})
    )
    set_age(chained, "new", 4000)

    prune(chained, MODEL, keep_versions=0, keep_runs=1)

    assert runs_left(chained) == {"new", f"run-{VERSIONS}"}


def test_a_run_that_failed_before_it_was_known_of_which_model_it_is_goes_by_age(chained: Workspace) -> None:
    (chained.root / "runs/recent/base.host.partial").mkdir(parents=True)
    for name in ("old", "notes"):
        (chained.root / "runs" / name).mkdir()
    (chained.root / "runs/old/base.host.partial").mkdir()
    chained.complete("older", "raw", inputs={}, work=lambda step: None)
    for name in ("old", "older", "notes"):
        set_age(chained, name, 15 * 24 * 3600)

    prune(chained, "theirs", keep_versions=0, keep_runs=0)
    kept_by_zero = runs_left(chained)
    removed = prune(chained, "theirs", keep_versions=0, keep_runs=1)

    runs = {f"run-{run}" for run in range(1, VERSIONS + 1)}
    assert kept_by_zero == {*runs, "recent", "notes", "old", "older"}
    assert [item.path for item in removed] == ["runs/old", "runs/older"]
    assert runs_left(chained) == {*runs, "recent", "notes"}


def test_a_version_with_which_another_models_chain_began_keeps_its_weights(chained: Workspace) -> None:
    base = begin_run(chained, "other", model_base="pvc://models/ours/v0001", model_name="theirs")
    training, evaluation = finish_run(chained, "other")
    promote_model(chained, run_id="other", model_name="theirs", base=base, training=training, evaluation=evaluation)
    promote(chained, "other-2", model_name="theirs")
    for run_id in ("other", "other-2"):
        remove_folder(chained.run_directory(run_id))

    prune(chained, MODEL, keep_versions=1, keep_runs=0)

    assert with_weights(chained) == ["v0001", "v0004", "v0005"]


def test_a_removal_that_was_killed_is_finished(chained: Workspace) -> None:
    for parent in (chained.root / "runs", chained.models / MODEL):
        aside = parent / ".run-0.removed.x1y2"
        aside.mkdir()
        (aside / "large").write_bytes(b"12345")

    removed = prune(chained, MODEL, keep_versions=0, keep_runs=0)

    assert [(item.path, item.size_bytes) for item in removed] == [
        ("runs/.run-0.removed.x1y2", 5),
        ("models/ours/.run-0.removed.x1y2", 5),
    ]
    assert not list((chained.root / "runs").glob(".*"))


def test_what_a_killed_promotion_left_goes_with_its_run(chained: Workspace) -> None:
    partial = chained.models / "ours/.run-9@host.partial"
    partial.mkdir()
    orphan = chained.models / "ours/v0006"
    shutil.copytree(chained.models / "ours/v0005", orphan)
    manifest = orphan / "manifest.json"
    manifest.write_text(manifest.read_text().replace("run-5", "run-9"))
    begin_run(chained, "run-9")

    prune(chained, MODEL, keep_versions=0, keep_runs=0)
    stayed = (partial.exists(), orphan.exists())
    remove_folder(chained.run_directory("run-9"))
    prune(chained, MODEL, keep_versions=0, keep_runs=0)

    assert stayed == (True, True)
    assert (partial.exists(), orphan.exists()) == (False, False)


def test_on_an_empty_workspace_there_is_nothing_to_prune(workspace: Workspace) -> None:
    assert prune(workspace, MODEL, keep_versions=1, keep_runs=1) == []


@pytest.mark.parametrize("name", ["keep_versions", "keep_runs"])
def test_a_negative_number_is_refused(workspace: Workspace, name: str) -> None:
    numbers = {"keep_versions": 0, "keep_runs": 0, name: -1}

    with pytest.raises(ConfigError, match=f"{name} is -1. Give a whole number from 0"):
        prune(workspace, MODEL, **numbers)


def test_the_next_run_begins_where_nothing_was_pruned(chained: Workspace) -> None:
    prune(chained, MODEL, keep_versions=1, keep_runs=1)

    manifest = resolve_base(
        chained, run_id="next", model_base="promoted://ours", model_origin="", promote_model_name=MODEL
    )

    assert manifest.path == "runs/next/base"
    assert promote(chained, "later").path == "models/ours/v0006"


def test_the_list_is_readable() -> None:
    removed = [PrunedItem(path="runs/a", size_bytes=1_500_000), PrunedItem(path="models/b/v0001", size_bytes=500_000)]

    text = pruned_as_markdown(removed)

    assert text.splitlines() == [
        "| removed | size |", "|---|---:|", "| runs/a | 1.5 MB |", "| models/b/v0001 | 500.0 kB |", "| all | 2.0 MB |",
    ]  # fmt: skip
    assert pruned_as_markdown([]) == "Nothing was removed.\n"
