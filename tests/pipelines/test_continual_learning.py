"""The whole pipeline through KFP's local runner: every step a process of its own, on a real small model."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.workspace import Manifest, Workspace
from run_local import parse_settings, run


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "a workspace with spaces"
    root.mkdir()
    return Workspace(root)


@pytest.fixture
def arguments(
    workspace: Workspace, tiny_model: Path, messages_file: Path, write_parity_task: Callable[[Path, str], None]
) -> dict[str, Any]:
    """A short run; the data lie on the workspace, as they would on a volume."""
    tasks = workspace.root / "tasks"
    tasks.mkdir()
    write_parity_task(tasks, "parity")
    (workspace.root / "new.jsonl").write_bytes(messages_file.read_bytes())
    return {
        "data_uri": "pvc://new.jsonl",
        "data_holdout_fraction": 0.25,
        "model_base": str(tiny_model),
        "train_effective_batch_size": 4,
        "train_max_tokens_per_gpu": 512,
        "train_max_seq_len": 128,
        "train_num_epochs": 2,
        "train_target_patterns": ["mlp"],
        "eval_tasks": "parity",
        "eval_include_path": "pvc://tasks",
        "eval_max_forgetting": 1.0,
        "promote_model_name": "adder",
    }


@pytest.mark.slow
def test_a_run_that_passes_publishes_its_model_with_its_lineage(
    workspace: Workspace, arguments: dict[str, Any]
) -> None:
    evaluation = run(arguments, workspace)

    scores = orjson.loads((evaluation / "forgetting.json").read_bytes())
    assert [(task["task"], task["kind"]) for task in scores["tasks"]] == [
        ("parity", "retention"),
        ("holdout", "target"),
    ]
    assert set(scores["tasks"][0]) >= {"metric", "base", "tuned", "delta", "ci_low", "ci_high", "n"}
    assert scores["passed"] is True
    assert (evaluation / "report.html").is_file()
    assert (evaluation / "report.md").is_file()
    assert scores["training"]["num_epochs"] == 2
    assert scores["data"]["rows_in"] == 8
    run_folder = evaluation.parent
    assert evaluation.name == "evaluation"
    assert run_folder.parent == workspace.root / "runs"
    for step in ("raw", "valid", "processed", "baseline", "training", "evaluation"):
        assert Manifest.load(run_folder / step / "manifest.json").path == f"runs/{run_folder.name}/{step}"
    version = workspace.models / "adder" / "v0001"
    lineage = orjson.loads((version / "lineage.json").read_bytes())
    assert lineage["run_id"] == run_folder.name
    assert lineage["scores"] == scores
    published, trained = version / "model.safetensors", run_folder / "training" / "final" / "model.safetensors"
    assert published.read_bytes() == trained.read_bytes()


@pytest.mark.slow
def test_a_run_that_does_not_pass_ends_well_and_publishes_nothing(
    workspace: Workspace, arguments: dict[str, Any]
) -> None:
    evaluation = run({**arguments, "eval_min_target_gain": 1.0}, workspace)

    assert orjson.loads((evaluation / "forgetting.json").read_bytes())["passed"] is False
    assert not workspace.models.exists()


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
    # An interpreter whose path has a space, as in a checkout below such a folder.
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
    raw, partial = sorted(path.name for path in run_folder.iterdir())
    assert raw == "raw"
    assert re.fullmatch(r"valid\..+\.partial", partial)


def test_a_setting_takes_the_type_that_the_pipeline_declares() -> None:
    settings = [
        "train_num_epochs=2", "train_learning_rate=1e-3", "train_use_liger=True", "eval_tasks=a,b=c",
        'train_target_patterns=["q_proj"]', "eval_limit=5", 'eval_task_limits={"a": 0.02}',
    ]  # fmt: skip

    assert parse_settings(settings) == {
        "train_num_epochs": 2,
        "train_learning_rate": 1e-3,
        "train_use_liger": True,
        "eval_tasks": "a,b=c",
        "train_target_patterns": ["q_proj"],
        "eval_limit": 5,
        "eval_task_limits": {"a": 0.02},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train_epochs=2", "there is no parameter train_epochs. Did you mean train_num_epochs"),
        ("=2", "there is no parameter . Did you mean data_block_size, "),
        ("train_num_epochs", "has no value. Give name=value"),
    ],
)
def test_a_setting_that_is_no_parameter_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings([setting])


@pytest.mark.parametrize(
    "setting",
    [
        "train_num_epochs=two", "train_num_epochs=1.5", "train_use_liger=maybe", "train_target_patterns=q",
        "eval_generation=[1]",
    ],
)  # fmt: skip
def test_a_setting_of_the_wrong_type_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (whole number|number|true or false|list|JSON object)"):
        parse_settings([setting])
