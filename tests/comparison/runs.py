"""Runs to compare, made of plain numbers: the folders and manifests are real, no model is in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from osft.comparison.compared_run import STEPS
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, describe_files, write_json

TASK: dict[str, Any] = {
    "task": "country_capital",
    "kind": "retention",
    "metric": "exact_match",
    "base": 1.0,
    "tuned": 0.97,
    "delta": -0.03,
    "ci_low": -0.06,
    "ci_high": -0.01,
    "loss_upper": 0.06,
    "n": 179,
}
HOLDOUT: dict[str, Any] = {
    "task": "holdout",
    "kind": "target",
    "metric": "acc",
    "base": 0.0,
    "tuned": 1.0,
    "delta": 1.0,
    "n": 25,
}
TRAINING = {"unfreeze_rank_ratio": 0.25, "learning_rate": 6e-3, "num_epochs": 3, "seed": 42, "processed": "a" * 64}


def make_report(*tasks: Mapping[str, Any], **fields: Any) -> ForgettingReport:
    values: dict[str, Any] = {
        "base": "base",
        "tuned": "tuned",
        "tasks": tuple(TaskComparison(**task) for task in tasks or (TASK, HOLDOUT)),
        "forgetting": 0.03,
        "forgetting_upper": 0.06,
        "unbounded_tasks": (),
        "target_gain": 1.0,
        "backward_transfer": -0.03,
        "average_accuracy_base": 0.5,
        "average_accuracy_tuned": 0.985,
        "probe": None,
        "passed": False,
        "reasons": ("Forgetting is 3.0 points and, with 95% confidence, at most 6.0 points: above the limit of 5.0.",),
        "settings": {},
        "versions": {},
    }
    return ForgettingReport(**values | fields)


def write_run(
    workspace: Workspace,
    run_id: str,
    *,
    last_step: str = "evaluation",
    training: Mapping[str, Any] | None = None,
    report: ForgettingReport | None = None,
    losses: tuple[float, ...] = (4.0, 2.0, 1.0),
    holdout: bytes = b"rows",
    train: bytes = b"more rows",
    started_seconds: float = 1_800_000_000.0,
) -> Path:
    """Write a run as far as ``last_step``."""
    run = workspace.run_directory(run_id)
    reports: dict[str, dict[str, Any]] = {
        "raw": {"source.json": {"uri": "s3://bucket/rows.jsonl", "rows": 336, "sha256": "e" * 64, "revision": None}},
        "valid": {"validation.json": {"rows_in": 336, "rows_valid": 336, "rows_quarantined": 0, "rows_duplicated": 0}},
        "processed": {"processing.json": {"rows_train": 311, "rows_holdout": 25}},
        "training": {"training.json": {"result": _result(losses)}},
        "evaluation": {"forgetting.json": report or make_report()},
    }
    inputs: dict[str, dict[str, Any]] = {
        "raw": {"uri": "s3://bucket/rows.jsonl", "uri_sha256": "b" * 64},
        "processed": {"model": "org/base", "max_seq_len": 128, "holdout_fraction": 0.1, "seed": 42},
        "training": {"model_path": "org/base", **TRAINING, **(training or {})},
        "evaluation": {"base": "org/base", "holdout": f"{run}/processed", "max_forgetting": 0.05},
    }
    for place, step in enumerate(STEPS):
        folder = run / step
        folder.mkdir(parents=True)
        for name, content in reports.get(step, {}).items():
            write_json(folder / name, content)
        if step == "processed":
            (folder / "holdout.parquet").write_bytes(holdout)
            (folder / "train.parquet").write_bytes(train)
        if step == "training":
            write_metrics(folder, losses)
        manifest = Manifest(path=f"runs/{run_id}/{step}", files=describe_files(folder), inputs=inputs.get(step, {}))
        manifest.save(folder / MANIFEST_NAME)
        os.utime(folder / MANIFEST_NAME, (started_seconds + 60 * place,) * 2)
        if step == last_step:
            break
    return run


def write_metrics(folder: Path, losses: tuple[float, ...]) -> None:
    lines = [orjson.dumps({"step": step, "loss": loss}) + b"\n" for step, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))


def _result(losses: tuple[float, ...]) -> dict[str, Any]:
    return {
        "final_checkpoint": "final",
        "epoch_checkpoints": [],
        "metrics_file": "metrics.jsonl",
        "loss_chart": "loss.html",
        "steps": len(losses),
        "samples": 311,
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "trainable_parameters": 360448,
        "seconds": 32.5,
    }
