"""The steps of a ratio sweep, called as functions around trainings that are made of plain scores."""

from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.model_promotion import model_promotion
from components.ratio_choice import ratio_choice
from components.ratio_runs import ratio_runs
from osft.errors import EvaluationError
from osft.sweep.ratio_runs import RatioRun
from osft.versions.base_model import BASE_STEP
from osft.versions.runs import runs_of
from osft.workspace import Manifest, Workspace
from tests.components.artifacts import artifact
from tests.sweep.sweeps import SWEEP, finish_ratio, prepare_steps, right
from tests.versions.finished_runs import MODEL


def begin_sweep(workspace: Workspace, ratios: list[Any]) -> list[dict[str, Any]]:
    steps = prepare_steps(workspace)
    runs: list[dict[str, Any]] = ratio_runs.python_func(
        run_id=SWEEP,
        ratios=ratios,
        base=artifact(dsl.Artifact, workspace, "base", steps["base"]),
        rows=artifact(dsl.Dataset, workspace, "rows", steps["raw"]),
        valid=artifact(dsl.Dataset, workspace, "valid", steps["valid"]),
        processed=artifact(dsl.Dataset, workspace, "processed", steps["processed"]),
    )
    return runs


def choose(workspace: Workspace, runs: list[dict[str, Any]], *, fail_run: bool = False) -> dict[str, Any]:
    """Choose; return the artifacts, and the step's outputs."""
    kinds = {"tuned": dsl.Model, "evaluation": dsl.Artifact, "metrics": dsl.Metrics, "report": dsl.HTML}
    artifacts = {name: artifact(kind, workspace, name) for name, kind in {**kinds, "summary": dsl.Markdown}.items()}
    outputs = ratio_choice.python_func(
        run_id=SWEEP, runs=runs, evaluated=[True] * len(runs), fail_run=fail_run, **artifacts
    )
    return {**artifacts, "outputs": outputs}


def test_the_runs_of_the_ratios_come_as_plain_values_and_hold_the_steps_before(workspace: Workspace) -> None:
    runs = begin_sweep(workspace, [0.5, 0.25])

    assert runs == [
        {"run_id": "sweep-ratio-0.25", "ratio": 0.25},
        {"run_id": "sweep-ratio-0.5", "ratio": 0.5},
    ]
    folders = [sorted(path.name for path in workspace.run_directory(run["run_id"]).iterdir()) for run in runs]
    assert folders == [["base", "processed", "raw", "sweep.json", "valid"]] * 2


def test_the_chosen_ratio_is_promoted_as_the_sweeps_model(workspace: Workspace) -> None:
    runs = begin_sweep(workspace, [0.5, 0.25])
    for run, new in zip(runs, (60, 120), strict=True):
        finish_ratio(workspace, RatioRun(**run), {"kept": right(199), "new": right(new)})

    chosen = choose(workspace, runs)
    promoted = artifact(dsl.Model, workspace, "promoted")
    model_promotion.python_func(
        run_id=SWEEP,
        model_name=MODEL,
        base=artifact(
            dsl.Artifact, workspace, "base", Manifest.load(workspace.run_directory(SWEEP) / BASE_STEP / "manifest.json")
        ),
        tuned=chosen["tuned"],
        evaluation=chosen["evaluation"],
        promoted=promoted,
    )

    assert chosen["outputs"] == (0.5, True)
    assert promoted.metadata == {"path": "models/ours/v0001", "run_id": SWEEP}
    assert (workspace.models / MODEL / "v0001/model.safetensors").read_text() == "weights of 0.5"
    # Neither the sweep nor its ratios keep anything from being pruned.
    assert not any(run.is_under_way(now=run.last_written) for run in runs_of(workspace))


def test_the_choice_fills_the_artifacts_of_its_step(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    runs = begin_sweep(workspace, [0.1, 0.5])
    for run in runs:
        finish_ratio(workspace, RatioRun(**run), {"kept": right(200), "new": right(int(200 * run["ratio"]))})

    chosen = choose(workspace, runs)

    assert chosen["metrics"].metadata["ratio"] == 0.5
    assert chosen["metrics"].metadata["ratio_0.1.target_gain"] == pytest.approx(0.1)
    assert chosen["tuned"].metadata == {"path": "runs/sweep/training/final", "ratio": 0.5}
    assert "Unfreeze ratio 0.5" in Path(chosen["report"].path).read_text()
    assert Path(chosen["summary"].path).read_text().startswith("## Passed: ratio 0.5\n")
    assert "Ratio 0.5 is taken: its gain of 50.0 points is the highest" in capfd.readouterr().err


def test_a_sweep_of_which_nothing_passed_fails_if_it_must_after_its_report_is_written(workspace: Workspace) -> None:
    runs = begin_sweep(workspace, [0.1, 0.5])
    for run in runs:
        finish_ratio(workspace, RatioRun(**run), {"kept": right(100), "new": right(60)})

    with pytest.raises(EvaluationError, match="No model passed and none is promoted"):
        choose(workspace, runs, fail_run=True)

    assert (workspace.root.parent / "report").stat().st_size > 0
    assert choose(workspace, runs)["outputs"] == (0.1, False)
