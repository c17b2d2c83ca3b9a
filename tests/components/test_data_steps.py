"""The steps up to the validation, called as functions for several runs on one workspace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from kfp import dsl

from components.base_resolution import base_resolution
from components.dataset_download import dataset_download
from components.message_validation import message_validation
from osft.data.increments.row_hash import hash_messages_row
from osft.errors import ConfigError, MissingPathError
from osft.versions.journal import Journal
from osft.versions.lineage import Lineage
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, read_json

ORIGIN = "org/base"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace that the steps find."""
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path))
    return Workspace(tmp_path)


def write_facts(workspace: Workspace, numbers: Sequence[int], *, name: str = "facts.jsonl", **columns: Any) -> None:
    """Write one conversation for each number to a file on the volume."""
    lines = []
    for number in numbers:
        answer = {"role": "assistant", "content": f"Element {number}."}
        messages = [{"role": "user", "content": f"Element {number}?"}, answer]
        lines.append(orjson.dumps({"messages": messages, **columns}, option=orjson.OPT_APPEND_NEWLINE))
    (workspace.root / name).write_bytes(b"".join(lines))


def artifact(kind: type[dsl.Artifact], workspace: Workspace, name: str) -> Any:
    """Return an artifact of the pipeline."""
    folder = workspace.root / "artifacts"
    folder.mkdir(exist_ok=True)
    return kind(uri=str(folder / name))


def validate(
    workspace: Workspace, run_id: str, *, uri: str = "pvc://facts.jsonl", date: str = "now", **changes: Any
) -> tuple[bool, dict[str, Any]]:
    """Do a run's steps up to the validation; return whether there are new rows, and the report."""
    base, rows = artifact(dsl.Artifact, workspace, f"base-{run_id}"), artifact(dsl.Dataset, workspace, f"rows-{run_id}")
    base_resolution.python_func(
        run_id=run_id,
        model_base="promoted://ours",
        model_origin=ORIGIN,
        model_name="ours",
        registry_address="",
        registry_location="",
        registry_claim="my-claim",
        base=base,
    )
    dataset_download.python_func(run_id=run_id, uri=uri, date=date, rows=rows)
    parameters = {
        "data_format": "messages", "on_invalid": "fail", "max_invalid_fraction": 0.0, "document_column": "document",
        "unmask_messages": False, "since": "", "time_column": "at", "force": False,
        "max_seq_len": 64,
    }  # fmt: skip
    made = {"valid": dsl.Dataset, "metrics": dsl.Metrics, "report": dsl.HTML}
    outputs = {name: artifact(kind, workspace, f"{name}-{run_id}") for name, kind in made.items()}
    result = message_validation.python_func(run_id=run_id, base=base, rows=rows, **parameters | changes, **outputs)
    report = read_json(workspace.directory_of(outputs["valid"].path) / "validation.json")
    assert outputs["metrics"].metadata["rows_seen"] == report["rows_seen"]
    assert outputs["valid"].metadata["rows"] == report["rows_valid"]
    assert Path(outputs["report"].path).read_text().startswith("<!doctype html>")
    return result, report


def promote(
    workspace: Workspace, run_id: str, *, parent: str | None, held_out: bytes = b"", too_long: bytes = b""
) -> str:
    """Publish a version without weights that counts as the run's.

    Args:
        workspace: where the run is.
        run_id: the run, whose validation is done.
        parent: version before this one.
        held_out: hash of a row that was held out.
        too_long: hash of a row that was dropped; such a run took none.
    """
    journal = Journal(workspace, "ours")
    version = f"v{len(journal.entries()) + 1:04d}"
    folder = workspace.models / "ours" / version
    folder.mkdir(parents=True)
    raw = Manifest.load(workspace.run_directory(run_id) / "raw" / MANIFEST_NAME)
    Lineage(
        model_name="ours", version=version, parent=parent, replaced=parent, origin=ORIGIN, origin_fingerprint=None,
        run_id=run_id, promoted_at="2026-11-22T02:00:00+00:00", data={}, parameters={"processed": {"max_seq_len": 64}},
        file_hashes={"raw": {file.name: file.sha256 for file in raw.files}}, software={}, learned_task=None, scores=(),
    ).save(folder)  # fmt: skip
    (folder / "model.safetensors").write_bytes(b"weights")
    seen_rows = (workspace.run_directory(run_id) / "valid/seen_rows.bin").read_bytes()
    (folder / "seen_rows.bin").write_bytes(b"" if too_long else seen_rows)
    (folder / "too_long_rows.bin").write_bytes(too_long)
    (folder / "held_out_rows.bin").write_bytes(held_out)
    Manifest(path=f"models/ours/{version}", files=(), inputs={}).save(folder / MANIFEST_NAME)
    journal.replace(parent, version, reason="promotion", run_id=run_id)
    return version


def test_a_run_takes_what_no_ancestor_took(workspace: Workspace) -> None:
    write_facts(workspace, range(4))
    first = validate(workspace, "run-1")
    parent = promote(workspace, "run-1", parent=None)
    write_facts(workspace, range(6))
    second = validate(workspace, "run-2")
    promote(workspace, "run-2", parent=parent)
    write_facts(workspace, [0, 5, 6])

    third = validate(workspace, "run-3")

    told = [
        (new, report["rows_valid"], report["rows_seen"], report["seen_files"]) for new, report in (first, second, third)
    ]
    assert told == [(True, 4, 0, 0), (True, 2, 4, 1), (True, 1, 2, 2)]


def test_a_run_that_was_not_promoted_leaves_its_rows_new(workspace: Workspace) -> None:
    write_facts(workspace, range(4))
    validate(workspace, "run-1")

    has_new_rows, report = validate(workspace, "run-2")

    assert (has_new_rows, report["rows_valid"]) == (True, 4)


def test_an_unchanged_source_is_told_from_a_changed_one_without_new_rows(workspace: Workspace) -> None:
    write_facts(workspace, range(4))
    validate(workspace, "run-1")
    promote(workspace, "run-1", parent=None)
    unchanged = validate(workspace, "run-2")
    write_facts(workspace, range(3))

    fewer = validate(workspace, "run-3")

    assert [(new, report["accepted"], report["unchanged_since"]) for new, report in (unchanged, fewer)] == [
        (False, True, "v0001"), (False, True, None),
    ]  # fmt: skip


def test_force_takes_the_rows_again(workspace: Workspace) -> None:
    write_facts(workspace, range(4))
    validate(workspace, "run-1")
    promote(workspace, "run-1", parent=None)

    has_new_rows, report = validate(workspace, "run-2", force=True)

    assert (has_new_rows, report["rows_valid"], report["rows_seen"]) == (True, 4, 4)


def test_force_never_takes_what_an_ancestor_held_out(workspace: Workspace) -> None:
    write_facts(workspace, range(4))
    validate(workspace, "run-1")
    valid = (workspace.run_directory("run-1") / "valid/valid.jsonl").read_bytes().splitlines()
    promote(workspace, "run-1", parent=None, held_out=hash_messages_row(orjson.loads(valid[2])))

    _, report = validate(workspace, "run-2", force=True)

    assert (report["rows_valid"], report["rows_seen"], report["rows_seen_left_out"]) == (3, 4, 1)
    taken = (workspace.run_directory("run-2") / "valid/valid.jsonl").read_bytes().splitlines()
    assert taken == [valid[0], valid[1], valid[3]]


def test_what_an_ancestor_dropped_as_too_long_is_new_to_a_run_with_more_room_only(workspace: Workspace) -> None:
    write_facts(workspace, [1])
    validate(workspace, "run-1")
    row = orjson.loads((workspace.run_directory("run-1") / "valid/valid.jsonl").read_bytes())
    promote(workspace, "run-1", parent=None, too_long=hash_messages_row(row))

    told = [validate(workspace, f"run-{length}", max_seq_len=length)[0] for length in (32, 64, 65)]

    assert told == [False, False, True]


@pytest.mark.parametrize("name", ["seen_rows.bin", "held_out_rows.bin", "too_long_rows.bin"])
def test_hashes_of_an_ancestor_that_are_gone_end_the_step(workspace: Workspace, name: str) -> None:
    write_facts(workspace, range(4))
    validate(workspace, "run-1")
    promote(workspace, "run-1", parent=None)
    (workspace.models / "ours/v0001" / name).unlink()

    with pytest.raises(MissingPathError, match=rf"'models/ours/v0001/{name}' does not exist in the workspace"):
        validate(workspace, "run-2")


def test_a_retried_step_is_not_done_again_and_one_with_another_time_is(workspace: Workspace) -> None:
    write_facts(workspace, range(4), at="2026-11-02")
    validate(workspace, "run-1", since="P7D/2026-11-05")
    report_file = workspace.run_directory("run-1") / "valid/validation.json"
    written_ns = report_file.stat().st_mtime_ns

    validate(workspace, "run-1", since="P7D/2026-11-05")
    is_kept = report_file.stat().st_mtime_ns == written_ns
    _, report = validate(workspace, "run-1", since="2026-11-03")

    assert is_kept
    assert (report["rows_too_old"], report["rows_valid"]) == (4, 0)


def test_a_dated_address_is_that_of_the_day(workspace: Workspace) -> None:
    write_facts(workspace, [1], name="2026-11-21.jsonl")
    write_facts(workspace, [1, 2, 3], name="2026-11-22.jsonl")

    _, report = validate(workspace, "run-1", uri="pvc://{date:%Y-%m-%d}.jsonl", date="P1D/20261122020000")

    source = read_json(workspace.run_directory("run-1") / "raw/source.json")
    assert (source["uri"], report["rows_valid"]) == ("pvc://2026-11-21.jsonl", 1)


def test_a_macro_that_was_not_filled_in_ends_the_step(workspace: Workspace) -> None:
    write_facts(workspace, [1])

    with pytest.raises(ConfigError, match=r"data_since is '\[\[ScheduledTime\]\]': the pipeline server did not fill"):
        validate(workspace, "run-1", since="[[ScheduledTime]]")
