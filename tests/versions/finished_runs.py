"""Folders of runs as their steps leave them, with a few bytes in place of a model."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement, save_measurements
from osft.versions.base_model import resolve_base
from osft.versions.promotion import promote_model
from osft.workspace import Manifest, Workspace, write_json

ORIGIN = "org/base"
MODEL = "ours"


def measure(task: str, score: float) -> TaskMeasurement:
    document = DocumentMeasurement(doc_id=0, fingerprint="f", score=score, prompt="2?", gold="2", answer="2")
    return TaskMeasurement(
        task=task, metric="acc", higher_is_better=True, value=score, other_values={}, documents=(document,),
        version="1", num_fewshot=0,
    )  # fmt: skip


def begin_run(
    workspace: Workspace, run_id: str, *, model_base: str = f"promoted://{MODEL}", model_name: str = MODEL
) -> Manifest:
    """Do the first step; return its manifest."""
    return resolve_base(
        workspace, run_id=run_id, model_base=model_base, model_origin=ORIGIN, promote_model_name=model_name
    )


def finish_run(
    workspace: Workspace,
    run_id: str,
    *,
    passed: bool = True,
    held_out_rows: int = 2,
    memory: bool = False,
    fingerprint: str = "origin's",
) -> tuple[Manifest, Manifest]:
    """Do the other steps; return the manifests of training and evaluation."""

    def write_rows(directory: Path) -> None:
        write_json(directory / "source.json", {"uri": "x.jsonl", "sha256": "00", "rows": 9})

    def write_processed(directory: Path) -> None:
        held_out = f"heldout {run_id}".encode()
        (directory / "taken_rows.bin").write_bytes(f"trained {run_id}".encode() + held_out)
        (directory / "held_out_rows.bin").write_bytes(held_out)
        (directory / "too_long_rows.bin").write_bytes(b"")
        columns = {"input_ids": [[1, 2]], "labels": [[-100, 2]], "row": [1]}
        rows = pa.table(columns).slice(0, 0) if held_out_rows == 0 else pa.table(columns)
        pq.write_table(pa.concat_tables([rows] * max(1, held_out_rows)), directory / "holdout.parquet")

    def write_baseline(directory: Path) -> None:
        write_json(directory / "baseline.json", {"fingerprint": fingerprint})

    def write_model(directory: Path) -> None:
        (directory / "final").mkdir()
        (directory / "final/model.safetensors").write_text(f"weights of {run_id}")
        (directory / "final/config.json").write_text("{}")
        (directory / "metrics.jsonl").touch()
        if memory:
            (directory / "memory").mkdir()
            (directory / "memory/memory.safetensors").write_text(f"memory of {run_id}")

    def write_scores(directory: Path) -> None:
        tasks = [("parity", "retention"), *([("holdout", "target")] if held_out_rows else [])]
        write_json(directory / "forgetting.json", scores(tasks, passed=passed))
        for model, score in (("base", 0.5), ("tuned", 0.75)):
            save_measurements({name: measure(name, score) for name, _ in tasks}, directory / "measurements" / model)

    workspace.complete(run_id, "raw", inputs={"uri": "x.jsonl"}, work=write_rows)
    workspace.complete(run_id, "valid", inputs={}, work=lambda directory: None)
    workspace.complete(run_id, "processed", inputs={"max_seq_len": 64}, work=write_processed)
    workspace.complete(run_id, "baseline", inputs={}, work=write_baseline)
    training = workspace.complete(run_id, "training", inputs={"learning_rate": 1e-3}, work=write_model)
    evaluation = workspace.complete(run_id, "evaluation", inputs={"trained": training.fingerprint}, work=write_scores)
    return training, evaluation


def scores(tasks: list[tuple[str, str]], *, passed: bool) -> dict[str, Any]:
    """Return what forgetting.json holds, as far as promotion reads it."""
    rest = {"metric": "acc", "higher_is_better": True, "base": 0.5, "tuned": 0.75, "n": 1}
    return {
        "passed": passed,
        "reasons": ["Too much."],
        "forgetting": 0.01,
        "tasks": [{"task": task, "kind": kind, **rest} for task, kind in tasks],
        "versions": {"torch": "2.13", "tasks": {"parity": "1"}},
        "data": {"uri": "x.jsonl", "rows_train": 7},
    }


def promote(workspace: Workspace, run_id: str, *, model_name: str = MODEL, **changes: Any) -> Manifest:
    """Do the steps that are not done yet, and promote."""
    base = begin_run(workspace, run_id, model_name=model_name, model_base=f"promoted://{model_name}")
    training, evaluation = finish_run(workspace, run_id, **changes)
    return promote_model(
        workspace, run_id=run_id, model_name=model_name, base=base, training=training, evaluation=evaluation
    )


def set_age(workspace: Workspace, run_id: str, seconds: float) -> None:
    """Let everything of a run be written so long ago."""
    then = time.time() - seconds
    folder = workspace.run_directory(run_id)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def read_manifests(workspace: Workspace, run_id: str) -> dict[str, Manifest]:
    """Return what the promotion of a finished run is given."""
    run = workspace.run_directory(run_id)
    return {step: Manifest.load(run / step / "manifest.json") for step in ("base", "training", "evaluation")}
