"""The two evaluation steps, called as functions on a workspace that the steps before have filled."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp import dsl

from components.baseline_evaluation import baseline_evaluation
from components.forgetting_evaluation import forgetting_evaluation
from osft.errors import EvaluationError
from osft.versions.base_model import BaseModel
from osft.workspace import Manifest, Workspace, as_json, write_json


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_parity_task: Callable[[Path, str], None]
) -> Workspace:
    """A workspace with a task of the user's and a text for the probe."""
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_parity_task(tasks, "parity")
    (tmp_path / "probe.txt").write_text("A text that both models read.\nAnd another one.\n")
    return Workspace(tmp_path)


def artifact(kind: type[dsl.Artifact], folder: Path, manifest: Manifest | None = None) -> Any:
    """Return an artifact of the pipeline, with a manifest in it if it is an input."""
    folder.mkdir(exist_ok=True)
    one = kind(uri=str(folder / f"{len(list(folder.iterdir()))}"))
    Path(one.path).touch()
    if manifest is not None:
        manifest.save(one.path)
    return one


def finish_steps_before(workspace: Workspace, model: Path) -> Mapping[str, Manifest]:
    """Leave what data steps and a training leave that changed nothing; return the manifests that are handed on."""

    def write_rows(directory: Path) -> None:
        columns = {"input_ids": [[5, 6, 7, 8]] * 3, "labels": [[-100, -100, 7, 8]] * 3, "row": [0, 1, 2]}
        pq.write_table(pa.table(columns), directory / "holdout.parquet")
        counts = {"rows_train": 5, "rows_holdout": 3, "rows_dropped_too_long": 0, "rows_truncated": 0}
        write_json(directory / "processing.json", {**counts, "train": {"tokens": 20}})

    counts = {"rows_in": 8, "rows_valid": 8, "rows_quarantined": 0, "rows_duplicated": 0}
    work = {
        "raw": lambda directory: write_json(directory / "source.json", {"uri": "x.jsonl"}),
        "valid": lambda directory: write_json(directory / "validation.json", counts),
        "processed": write_rows,
        "training": lambda directory: shutil.copytree(model, directory / "final"),
    }
    inputs = {"model_path": str(model), "learning_rate": 1e-3, "num_epochs": 2, "processed": "00"}
    return {step: workspace.complete("a-run", step, inputs=inputs, work=one) for step, one in work.items()}


def describe_start(workspace: Workspace, model: Path, **changes: Any) -> Manifest:
    """Leave what the first step of a run leaves: by default of a model that is no version."""
    start = BaseModel(
        **{
            "reference": str(model), "model": str(model), "model_name": "m", "parent": None, "current": None,
            "origin": str(model), "memory": None, "earlier_holdouts": {}, "seen_rows": (), "held_out_rows": (),
            "too_long_rows": {}, "ancestor_measurements": {},
        } | changes
    )  # fmt: skip
    return workspace.complete("a-run", "base", inputs=as_json(start), work=start.save)


def evaluate(
    workspace: Workspace, model: Path, start: Mapping[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Run both steps; return their artifacts by name, and the outputs of the second."""
    manifests = finish_steps_before(workspace, model)
    folder = workspace.root / "artifacts"
    parameters = {
        "run_id": "a-run", "tasks": "parity", "target_tasks": "", "include_path": "pvc://tasks",
        "num_fewshot": "auto", "limit": 0, "batch_size": 4, "apply_chat_template": True, "generation": {},
        "probe": "pvc://probe.txt", "backend": "hf", "gpus": "0", "max_forgetting": 1.0,
        "max_cumulative_forgetting": 1.0, "task_limits": {"parity": 1.0},
        "min_target_gain": 0.0, "seed": 42,
        "base": artifact(dsl.Artifact, folder, describe_start(workspace, model, **start or {})),
        "processed": artifact(dsl.Dataset, folder, manifests["processed"]),
    }  # fmt: skip
    first = {"baseline": artifact(dsl.Artifact, folder), "metrics": artifact(dsl.Metrics, folder)}
    baseline_evaluation.python_func(**parameters, **first)
    second = {
        "evaluation": artifact(dsl.Artifact, folder),
        "metrics": artifact(dsl.Metrics, folder),
        "report": artifact(dsl.HTML, folder),
        "summary": artifact(dsl.Markdown, folder),
    }
    arguments = {"fail_run": False, **parameters, **changes}
    outputs = forgetting_evaluation.python_func(
        **arguments, baseline=first["baseline"], tuned=artifact(dsl.Model, folder, manifests["training"]), **second
    )
    return {**second, "outputs": outputs, "baseline": first["baseline"], "baseline_metrics": first["metrics"]}


def test_the_base_model_is_measured_once_and_what_the_steps_report_agrees(
    workspace: Workspace, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evaluate(workspace, tiny_model)

    scores = orjson.loads((workspace.root / "runs/a-run/evaluation/forgetting.json").read_bytes())
    metrics, outputs = made["metrics"].metadata, made["outputs"]
    assert made["baseline_metrics"].metadata["baseline.parity"] == metrics["retention.parity.base"]
    assert set(made["baseline_metrics"].metadata) == {"baseline.parity", "baseline.holdout"}
    assert metrics["forgetting"] == outputs.forgetting == scores["forgetting"] == 0.0
    assert metrics["forgetting_upper"] == outputs.forgetting_upper == scores["forgetting_upper"]
    assert (metrics["learning_rate"], metrics["num_epochs"]) == (1e-3, 2)
    # The trained model's weights are the base model's, so of it, too, all is known already.
    assert re.findall(r"(\w+): task parity \(1 of 2\)(| is known)\n", capsys.readouterr().err) == [
        ("base", ""),
        ("base", " is known"),
        ("tuned", " is known"),
    ]
    assert outputs.passed is True
    page = (workspace.root / "runs/a-run/evaluation/report.html").read_text()
    assert Path(made["report"].path).read_text() == page
    assert "parity" in Path(made["summary"].path).read_text()


def test_the_manifests_tell_what_the_evaluation_was_made_from(workspace: Workspace, tiny_model: Path) -> None:
    made = evaluate(workspace, tiny_model)

    baseline, evaluation = Manifest.load(made["baseline"].path), Manifest.load(made["evaluation"].path)
    processed = Manifest.load(workspace.root / "runs/a-run/processed/manifest.json")
    training = Manifest.load(workspace.root / "runs/a-run/training/manifest.json")
    assert evaluation.inputs["baseline"] == baseline.fingerprint
    assert evaluation.inputs["trained"] == training.fingerprint
    assert evaluation.inputs["processed"] == baseline.inputs["processed"] == processed.fingerprint
    assert evaluation.inputs["probe_sha256"] == baseline.inputs["probe_sha256"]


def test_a_model_that_does_not_pass_fails_the_step_only_when_asked_to_and_last(
    workspace: Workspace, tiny_model: Path
) -> None:
    finished = evaluate(workspace, tiny_model, min_target_gain=0.5)

    with pytest.raises(EvaluationError, match=r"the tuned model did not pass: .*evaluation/report\.html\.$"):
        evaluate(workspace, tiny_model, min_target_gain=0.5, fail_run=True)

    assert finished["outputs"].passed is False
    assert finished["metrics"].metadata["passed"] == 0.0


def test_a_run_on_a_promoted_version_is_held_against_the_versions_before_it(
    workspace: Workspace, tiny_model: Path
) -> None:
    evaluate(workspace, tiny_model)
    measured, versions = workspace.root / "runs/a-run/evaluation/measurements", workspace.models / "m"
    shutil.copytree(measured / "base", versions / "v0000" / "measurements")
    shutil.copytree(measured / "tuned", versions / "v0001" / "measurements")
    shutil.copytree(workspace.root / "runs/a-run/processed", versions / "v0001" / "holdout")
    start = {
        "parent": "v0001",
        "origin": "pvc://gone",
        "earlier_holdouts": {"holdout_v0001": "models/m/v0001/holdout"},
        "ancestor_measurements": {name: f"models/m/{name}/measurements" for name in ("v0000", "v0001")},
    }

    made = evaluate(workspace, tiny_model, start)

    scores = orjson.loads((workspace.root / "runs/a-run/evaluation/forgetting.json").read_bytes())
    compared = {one["comparison"]["task"]: one["compared_with"] for one in scores["best_tasks"]}
    assert compared == {"parity": ["origin", "v0001"], "holdout_v0001": ["v0001"]}
    assert made["metrics"].metadata["cumulative_forgetting"] == scores["cumulative_forgetting"] == 0.0
    assert set(made["baseline_metrics"].metadata) == {"baseline.parity", "baseline.holdout_v0001", "baseline.holdout"}
