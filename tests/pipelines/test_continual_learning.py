"""The whole pipeline through KFP's local runner: every step a process of its own, on a real small model."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.workspace import Manifest, Workspace
from run_local import run
from tests.conftest import write_messages

pytestmark = pytest.mark.usefixtures("forked_steps")


def make_workspace(folder: Path, write_parity_task: Callable[[Path, str], None]) -> Workspace:
    """A workspace with a task and with data, as they would lie on a volume."""
    workspace = Workspace(folder / "a workspace with spaces")
    tasks = workspace.root / "tasks"
    tasks.mkdir(parents=True)
    write_parity_task(tasks, "parity")
    write_messages(workspace.root / "new.jsonl")
    return workspace


def make_arguments(model: Path) -> dict[str, Any]:
    """Return the parameters of a short run."""
    return {
        "data_uri": "pvc://new.jsonl",
        "data_holdout_fraction": 0.25,
        "model_base": "promoted://adder",
        "model_origin": str(model),
        "train_effective_batch_size": 4,
        "train_max_tokens_per_gpu": 512,
        "train_max_seq_len": 128,
        "train_num_epochs": 2,
        "train_target_patterns": ["mlp"],
        "eval_tasks": "parity",
        "eval_include_path": "pvc://tasks",
        "eval_max_forgetting": 1.0,
        "eval_max_cumulative_forgetting": 1.0,
        "promote_model_name": "adder",
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """What three runs in a row left."""

    workspace: Workspace
    first: Path
    """Folder of the run that passed."""

    unchanged: Path
    """Of the second one, on the same data."""

    refused: Path
    """Of the third one, on more data, which was asked for more than it can learn."""


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    write_parity_task: Callable[[Path, str], None],
    forked_steps: None,
) -> Chain:
    workspace = make_workspace(tmp_path_factory.mktemp("chain"), write_parity_task)
    arguments = make_arguments(tiny_model)
    first, unchanged = (run(arguments, workspace) for _ in range(2))
    data = workspace.root / "new.jsonl"
    data.write_bytes(data.read_bytes() + data.read_bytes().replace(b" plus ", b" and "))
    return Chain(
        workspace=workspace,
        first=first,
        unchanged=unchanged,
        refused=run({**arguments, "eval_min_target_gain": 1.0}, workspace),
    )


@pytest.fixture
def workspace(tmp_path: Path, write_parity_task: Callable[[Path, str], None]) -> Workspace:
    return make_workspace(tmp_path, write_parity_task)


@pytest.fixture
def arguments(tiny_model: Path) -> dict[str, Any]:
    return make_arguments(tiny_model)


@pytest.mark.slow
def test_a_run_that_passes_publishes_its_model_with_its_lineage(chain: Chain) -> None:
    scores = orjson.loads((chain.first / "evaluation" / "forgetting.json").read_bytes())
    assert [(task["task"], task["kind"]) for task in scores["tasks"]] == [
        ("parity", "retention"),
        ("holdout", "target"),
    ]
    assert set(scores["tasks"][0]) >= {"metric", "base", "tuned", "delta", "ci_low", "ci_high", "n"}
    assert scores["passed"] is True
    assert (chain.first / "evaluation" / "report.html").is_file()
    assert (chain.first / "evaluation" / "report.md").is_file()
    assert scores["training"]["num_epochs"] == 2
    assert scores["data"]["rows_in"] == 8
    assert chain.first.parent == chain.workspace.root / "runs"
    for step in ("base", "raw", "valid", "processed", "baseline", "training", "evaluation"):
        assert Manifest.load(chain.first / step / "manifest.json").path == f"runs/{chain.first.name}/{step}"
    version = chain.workspace.models / "adder" / "v0001"
    lineage = orjson.loads((version / "lineage.json").read_bytes())
    assert lineage["run_id"] == chain.first.name
    assert lineage["evaluation"] == scores
    published, trained = version / "model.safetensors", chain.first / "training" / "final" / "model.safetensors"
    assert published.read_bytes() == trained.read_bytes()
    assert (version / "memory").is_dir()


@pytest.mark.slow
def test_a_run_without_new_rows_ends_well_after_the_validation(chain: Chain) -> None:
    report = orjson.loads((chain.unchanged / "valid" / "validation.json").read_bytes())

    assert (report["rows_in"], report["rows_valid"], report["unchanged_since"]) == (8, 0, "v0001")
    assert {path.name for path in chain.unchanged.iterdir()} == {"base", "raw", "valid"}


@pytest.mark.slow
def test_a_run_takes_the_new_rows_and_keeps_the_old_ones_as_a_task(chain: Chain) -> None:
    start = orjson.loads((chain.refused / "base" / "base.json").read_bytes())
    scores = orjson.loads((chain.refused / "evaluation" / "forgetting.json").read_bytes())

    assert (start["parent"], start["model"]) == ("v0001", "pvc://models/adder/v0001")
    assert (scores["data"]["rows_in"], scores["data"]["rows_valid"]) == (16, 8)
    assert [task["task"] for task in scores["tasks"]] == ["parity", "holdout_v0001", "holdout"]


@pytest.mark.slow
def test_a_run_that_does_not_pass_ends_well_and_publishes_nothing(chain: Chain) -> None:
    assert orjson.loads((chain.refused / "evaluation" / "forgetting.json").read_bytes())["passed"] is False
    assert (chain.workspace.models / "adder" / "latest").read_text() == "v0001\n"


@pytest.mark.slow
def test_an_evaluation_that_cannot_be_done_stops_the_run_before_anything_is_trained(
    workspace: Workspace, arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="baseline-evaluation"):
        run({**arguments, "eval_task_limits": {"paritty": 0.1}}, workspace)

    assert "task_limits names 'paritty', which is not in tasks" in capfd.readouterr().out
    assert not list((workspace.root / "runs").glob("*/training*"))


@pytest.mark.slow
def test_a_bad_row_stops_the_run_before_anything_is_trained(
    workspace: Workspace,
    arguments: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # One whose path has a space, as in a checkout below such a folder.
    interpreter = tmp_path / "an interpreter"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with (workspace.root / "new.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "human", "content": "hi"}]}\n')

    with pytest.raises(RuntimeError, match="message-validation"):
        run(arguments, workspace)

    assert "line 9, messages[0].role" in capfd.readouterr().out
    (run_folder,) = (workspace.root / "runs").iterdir()
    base, raw, partial = sorted(path.name for path in run_folder.iterdir())
    assert (base, raw) == ("base", "raw")
    assert re.fullmatch(r"valid\..+\.partial", partial)
