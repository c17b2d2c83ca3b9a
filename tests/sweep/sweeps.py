"""Sweeps to choose from, made of plain scores: folders, measurements, statistics and gates are real, no model is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osft.comparison.compared_run import ComparedRun
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.forgetting import Kind, TaskLabel, join
from osft.evaluation.gate import judge
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement, save_measurements
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pairing import paired_scores
from osft.evaluation.pooling import union_of
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.metrics import flat_metrics
from osft.sweep.gains import Answers
from osft.sweep.measured_ratio import MeasuredRatio
from osft.sweep.ratio_runs import RatioRun, prepare_ratio_runs
from osft.workspace import Manifest, Workspace, write_json
from tests.comparison.runs import write_metrics
from tests.versions.finished_runs import begin_run

SWEEP = "sweep"
DOCUMENTS = 200
KEPT = [1.0] * DOCUMENTS
UNKNOWN = [0.0] * DOCUMENTS


def right(number: int, of: int = DOCUMENTS) -> list[float]:
    """Return the scores of a model that answers the first documents rightly."""
    return [float(place < number) for place in range(of)]


def measure(task: str, scores: Sequence[float], **fields: Any) -> TaskMeasurement:
    documents = tuple(
        DocumentMeasurement(doc_id=place, fingerprint=f"{task}{place}", score=score, prompt="?", gold="a", answer="b")
        for place, score in enumerate(scores)
    )
    values: dict[str, Any] = {
        "task": task, "metric": "acc", "higher_is_better": True, "value": sum(scores) / len(scores),
        "other_values": {}, "documents": documents, "version": "1", "num_fewshot": 0,
    }  # fmt: skip
    return TaskMeasurement(**values | fields)


def make_report(
    base: Mapping[str, TaskMeasurement],
    tuned: Mapping[str, TaskMeasurement],
    *,
    max_forgetting: float = 0.05,
    min_target_gain: float = 0.0,
) -> ForgettingReport:
    """Compare and judge as the evaluation does.

    A task is a target unless its name begins with kept. Those with a dot are scored as one: a.x, a.y are group a.
    """
    names = dict.fromkeys(task.partition(".")[0] for task in base)
    paired = [_pair(name, base, tuned, "retention" if name.startswith("kept") else "target") for name in names]
    outcome = join([one.compare(seed=1) for one in paired])
    config = EvaluationConfig(tasks=("kept",), max_forgetting=max_forgetting, min_target_gain=min_target_gain)
    verdict = judge(outcome, config)
    return ForgettingReport(
        base="base",
        tuned="tuned",
        **{name: getattr(outcome, name) for name in type(outcome).__dataclass_fields__},
        probe=None,
        passed=verdict.passed,
        reasons=verdict.reasons,
        settings={"max_forgetting": max_forgetting, "min_target_gain": min_target_gain, "seed": 1},
        versions={"torch": "2.13"},
        data={"uri": "x.jsonl"},
    )


def _pair(
    name: str, base: Mapping[str, TaskMeasurement], tuned: Mapping[str, TaskMeasurement], kind: Kind
) -> PairedTask:
    leaves = tuple(task for task in base if task.startswith(f"{name}."))
    if leaves:
        scores = union_of([paired_scores(base[leaf], tuned[leaf]) for leaf in leaves])
        return PairedTask(
            label=TaskLabel(task=name, kind=kind, metric="acc", leaves=leaves),
            scores=scores,
            base=float(scores.base.mean()),
            tuned=float(scores.tuned.mean()),
            num_documents=len(scores.base),
        )
    before, after = base[name], tuned[name]
    return PairedTask(
        label=TaskLabel(task=name, kind=kind, metric=before.metric, higher_is_better=before.higher_is_better),
        scores=paired_scores(before, after),
        base=before.value,
        tuned=after.value,
        num_documents=len(before.documents),
    )


def prepare_sweep(workspace: Workspace, ratios: Sequence[float] = (0.1, 0.5)) -> list[RatioRun]:
    """Do the steps that all ratios share, and make the ratios' runs."""
    return prepare_ratio_runs(workspace, SWEEP, ratios, prepare_steps(workspace))


def prepare_steps(workspace: Workspace) -> dict[str, Manifest]:
    """Do what a sweep does before it makes the ratios' runs; return the manifests that these share."""
    counts = {"rows_train": 7, "rows_holdout": 2, "rows_dropped_too_long": 0, "rows_truncated": 0}
    rows = {"rows_in": 9, "rows_valid": 9, "rows_quarantined": 0, "rows_duplicated": 0}
    baseline = {"baseline.json": {"fingerprint": "origin's"}}
    _complete(workspace, "baseline", baseline)
    return {
        "base": begin_run(workspace, SWEEP),
        "raw": _complete(workspace, "raw", {"source.json": {"uri": "x.jsonl", "sha256": "00", "rows": 9}}),
        "valid": _complete(workspace, "valid", {"validation.json": rows}),
        "processed": _complete(workspace, "processed", {"processing.json": {**counts, "train": {"tokens": 70}}}),
    }


def finish_ratio(workspace: Workspace, run: RatioRun, tuned: Mapping[str, Sequence[float]], **limits: float) -> None:
    """Train and evaluate one ratio: the base answers all that is to be kept, and nothing that is to be learnt.

    Args:
        workspace: where the run is.
        run: of the ratio.
        tuned: scores of the tuned model by task; those to be kept have names that begin with kept.
        limits: of the gate.
    """
    before, after = _answers(tuned)
    report = make_report(before, after, **limits)

    def write_training(folder: Path) -> None:
        (folder / "final").mkdir()
        (folder / "final/model.safetensors").write_text(f"weights of {run.ratio}")
        write_metrics(folder, (2.0, 1.0))
        numbers = {"steps": 2, "samples": 7, "first_loss": 2.0, "final_loss": 1.0, "trainable_parameters": 8}
        names = {"final_checkpoint": "final", "epoch_checkpoints": [], "metrics_file": "metrics.jsonl"}
        result = {**numbers, **names, "loss_chart": "loss.html", "seconds": 100 * run.ratio}
        write_json(folder / "training.json", {"result": result})

    def write_evaluation(folder: Path) -> None:
        report.save(folder / "forgetting.json")
        for model, measurements in (("base", before), ("tuned", after)):
            save_measurements(measurements, folder / "measurements" / model)

    trained = workspace.complete(run.run_id, "training", inputs={"unfreeze_rank_ratio": run.ratio}, work=write_training)
    workspace.complete(run.run_id, "evaluation", inputs={"trained": trained.fingerprint}, work=write_evaluation)


def sweep_of(
    workspace: Workspace, tuned: Mapping[float, Mapping[str, Sequence[float]]], **limits: float
) -> list[RatioRun]:
    """Do a whole sweep up to the choice, from the scores of each ratio's model."""
    runs = prepare_sweep(workspace, list(tuned))
    for run in runs:
        finish_ratio(workspace, run, tuned[run.ratio], **limits)
    return runs


def measured_of(
    folder: Path, tuned: Mapping[float, Mapping[str, Sequence[float]]], **limits: float
) -> list[MeasuredRatio]:
    """Return what the ratios' runs came to, without their folders but for the answers of the tuned models."""
    measured = []
    for ratio, scores in tuned.items():
        before, after = _answers(scores)
        report = make_report(before, after, **limits)
        save_measurements(after, folder / str(ratio))
        run = ComparedRun(
            run_id=f"{SWEEP}-ratio-{ratio}", began_at="", ended_at="", missing_step=None, report=report,
            metrics={**flat_metrics(report), "train_seconds": 100 * ratio},
        )  # fmt: skip
        answers = Answers(report=report, folder=folder / str(ratio))
        measured.append(MeasuredRatio(ratio=ratio, run=run, answers=answers))
    return measured


def without_leaves(one: Answers) -> Answers:
    """Return answers with a report that does not name the tasks of groups, as older ones do not."""
    tasks = tuple(replace(task, leaves=()) for task in one.report.tasks)
    return replace(one, report=replace(one.report, tasks=tasks))


def _answers(
    scores: Mapping[str, Sequence[float]],
) -> tuple[dict[str, TaskMeasurement], dict[str, TaskMeasurement]]:
    """Return a base that answers all that is to be kept, nothing that is to be learnt, and the tuned model."""
    before = {task: measure(task, KEPT if task.startswith("kept") else UNKNOWN) for task in scores}
    return before, {task: measure(task, values) for task, values in scores.items()}


def _complete(workspace: Workspace, step: str, files: Mapping[str, Any]) -> Manifest:
    def write(folder: Path) -> None:
        for name, content in files.items():
            write_json(folder / name, content)
        if step == "processed":
            # What a promotion copies of the rows, and of the held-out ones that there are none.
            for name in ("taken_rows.bin", "held_out_rows.bin", "too_long_rows.bin"):
                (folder / name).touch()
            pq.write_table(pa.table({"input_ids": [], "labels": [], "row": []}), folder / "holdout.parquet")

    return workspace.complete(SWEEP, step, inputs={"of": step, "max_seq_len": 64}, work=write)
