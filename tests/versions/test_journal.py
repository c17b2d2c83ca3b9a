"""Which version is current."""

import errno
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.errors import WorkspaceError
from osft.versions.journal import Entry, Journal, LostRaceError, promoted_models
from osft.workspace import Workspace

VERSIONS = st.sampled_from(["v0001", "v0002", "v0003"])
CHANGES = st.lists(
    st.tuples(st.none() | VERSIONS, VERSIONS, st.sampled_from(["promotion", "rollback"]), st.sampled_from(["a", "b"])),
    max_size=8,
)


def promote(journal: Journal, version: str, run_id: str = "run-a") -> Entry:
    return journal.replace(journal.current(), version, reason="promotion", run_id=run_id)


def test_a_model_that_was_never_promoted_has_no_current_version(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")

    assert (journal.current(), journal.entries()) == (None, [])
    assert not workspace.models.exists()


def test_the_newest_entry_says_what_is_current(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")

    for version in ("v0001", "v0002"):
        promote(journal, version)
    journal.replace("v0002", "v0001", reason="rollback", run_id=None)

    assert journal.current() == "v0001"
    assert [(entry.number, entry.replaced, entry.version, entry.reason) for entry in journal.entries()] == [
        (1, None, "v0001", "promotion"),
        (2, "v0001", "v0002", "promotion"),
        (3, "v0002", "v0001", "rollback"),
    ]
    assert (workspace.models / "ours/latest").read_text() == "v0001\n"
    assert sorted(path.name for path in (workspace.models / "ours/history").iterdir()) == [
        "000001.json", "000002.json", "000003.json",
    ]  # fmt: skip


@settings(max_examples=40)
@given(CHANGES)
def test_a_change_is_made_exactly_if_what_it_expects_is_current(changes: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        journal = Journal(workspace, "ours")
        made: list[tuple[Any, ...]] = []
        for expected, version, reason, run_id in changes:
            before = journal.entries()
            change = (expected, version, reason, run_id)
            if made and made[-1] == change:
                # Asked for again, as by a step that was killed before it could say that it was done.
                assert journal.replace(expected, version, reason=reason, run_id=run_id) == before[-1]
            elif expected == (made[-1][1] if made else None):
                journal.replace(expected, version, reason=reason, run_id=run_id)
                made.append(change)
            else:
                with pytest.raises(LostRaceError):
                    journal.replace(expected, version, reason=reason, run_id=run_id)
            entries = journal.entries()
            assert entries[: len(before)] == before
            assert [(one.replaced, one.version, one.reason, one.run_id) for one in entries] == made
            assert journal.current() == (made[-1][1] if made else None)
            assert not made or (workspace.models / "ours/latest").read_text() == f"{made[-1][1]}\n"


def test_of_many_writers_each_change_follows_the_one_before_it(workspace: Workspace) -> None:
    writers, tries = 4, 6

    def write(writer: int) -> int:
        journal, made = Journal(workspace, "ours"), 0
        for number in range(tries):
            try:
                promote(journal, f"v{writer + 1}{number:03d}", run_id=f"run-{writer}")
                made += 1
            except LostRaceError:
                continue
        return made

    with ThreadPoolExecutor(writers) as threads:
        made = sum(threads.map(write, range(writers)))

    entries = Journal(workspace, "ours").entries()
    assert len(entries) == made >= tries
    assert [entry.replaced for entry in entries] == [None, *(entry.version for entry in entries[:-1])]
    assert (workspace.models / "ours/latest").read_text() == f"{entries[-1].version}\n"


def test_who_loses_is_told_what_is_current_now(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")
    promote(journal, "v0001", run_id="run-b")

    with pytest.raises(LostRaceError, match="v0007 was to be the current version still, but v0001 is") as caught:
        journal.replace("v0007", "v0008", reason="promotion", run_id="run-c")
    assert caught.value.entry == journal.last()


def test_a_version_that_is_gone_from_an_empty_journal_is_an_error(workspace: Workspace) -> None:
    with pytest.raises(LostRaceError, match=r"the current version still, but none is\. Start a new run \(not a retry"):
        Journal(workspace, "ours").check("v0001")


def test_versions_that_an_older_osft_promoted_are_not_passed_over(workspace: Workspace) -> None:
    (workspace.models / "ours").mkdir(parents=True)
    (workspace.models / "ours/latest").write_text("v0003\n")

    with pytest.raises(
        WorkspaceError,
        match=r"models/ours names a current version in 'latest' and has no journal: an older osft promoted it\. "
        "Move models/ours away, or promote under another name",
    ):
        Journal(workspace, "ours").current()


def test_models_are_known_by_their_journals(workspace: Workspace) -> None:
    promote(Journal(workspace, "ours"), "v0001")
    promote(Journal(workspace, "theirs"), "v0001")
    (workspace.models / "notes").mkdir()

    assert promoted_models(workspace) == ["ours", "theirs"]


def test_a_file_system_without_hard_links_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    with pytest.raises(WorkspaceError, match=r"models/ours/history: the file system has no hard links"):
        promote(Journal(workspace, "ours"), "v0001")
    assert list((workspace.models / "ours/history").iterdir()) == []


def test_a_temporary_file_that_a_killed_writer_left_is_no_entry(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")
    promote(journal, "v0001")
    (workspace.models / "ours/history/.000002.json.x1y2z3").write_text('{"number": 2')

    promote(journal, "v0002")

    assert [entry.version for entry in journal.entries()] == ["v0001", "v0002"]


def test_latest_follows_the_journal_after_a_kill(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")
    promote(journal, "v0001")
    (workspace.models / "ours/latest").unlink()

    journal.name_latest()

    assert (workspace.models / "ours/latest").read_text() == "v0001\n"


@pytest.mark.parametrize("content", ["", "{}", '{"number": 1'])
def test_an_entry_that_is_damaged_is_named(workspace: Workspace, content: str) -> None:
    journal = Journal(workspace, "ours")
    promote(journal, "v0001")
    (workspace.models / "ours/history/000001.json").write_text(content)

    with pytest.raises(WorkspaceError, match=r"history/000001\.json: no entry of a journal"):
        journal.current()


def test_an_entry_that_is_missing_is_named(workspace: Workspace) -> None:
    journal = Journal(workspace, "ours")
    for version in ("v0001", "v0002"):
        promote(journal, version)
    (workspace.models / "ours/history/000001.json").unlink()

    with pytest.raises(WorkspaceError, match=r"history/000001\.json: no entry of a journal"):
        journal.entries()
