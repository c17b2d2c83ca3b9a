"""Step 5: lm-eval on the base and the tuned model: what was lost, what was gained, and whether that is acceptable."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def forgetting_evaluation(
    run_id: str,
    model: str,
    tasks: str,
    target_tasks: str,
    include_path: str,
    num_fewshot: str,
    limit: int,
    apply_chat_template: bool,
    batch_size: int,
    max_forgetting: float,
    min_target_gain: float,
    seed: int,
    processed: dsl.Input[dsl.Dataset],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> NamedTuple("Outputs", [("forgetting", float), ("target_gain", float), ("passed", bool)]):  # type: ignore[valid-type]
    """Evaluate both models and write ``forgetting.json``, ``report.html`` to ``runs/<run_id>/evaluation``.

    Args:
        run_id: id of the pipeline run.
        model: base model, a Hugging Face id or a folder.
        tasks: retention tasks of lm-eval, separated by commas.
        target_tasks: lm-eval tasks of the new domain, separated by commas; the held-out rows always count as one.
        include_path: folder of the user's own task files; empty: none.
        num_fewshot: examples before each question, a number, or ``auto`` for each task's own.
        limit: documents a task; 0 takes all.
        apply_chat_template: ask through the model's chat template, if it has one.
        batch_size: prompts through the model at once.
        max_forgetting: largest mean loss over the retention tasks that passes, 0 to 1.
        min_target_gain: smallest mean gain over the target tasks that passes.
        seed: seed of the few-shot examples and of the confidence intervals.
        processed: manifest of the tokenized rows; the held-out ones are evaluated.
        tuned: manifest of the trained model.
        evaluation: manifest of the results.
        metrics: forgetting, gain, and both scores of each task.
        report: what was forgotten, as a page.

    Returns:
        Mean loss over the retention tasks, mean gain over the target tasks (0 when there is none), and whether both
        are within their limits.
    """
    import shutil
    from collections import namedtuple
    from pathlib import Path

    from osft.evaluation.config import EvaluationConfig, split_names
    from osft.evaluation.evaluate import evaluate_forgetting
    from osft.evaluation.report import ForgettingReport
    from osft.logs import configure_logging
    from osft.workspace import Manifest, Workspace, as_json, read_json

    configure_logging()
    workspace = Workspace.from_environment()
    processed_directory = workspace.directory_of(processed.path)
    has_holdout = read_json(processed_directory / "processing.json")["rows_holdout"] > 0
    config = EvaluationConfig(
        base=workspace.locate(model),
        tuned=str(workspace.directory_of(tuned.path) / "final"),
        tasks=split_names(tasks),
        target_tasks=split_names(target_tasks),
        include_path=Path(workspace.locate(include_path)) if include_path else None,
        holdout=processed_directory if has_holdout else None,
        num_fewshot=None if num_fewshot == "auto" else int(num_fewshot),
        limit=limit or None,
        batch_size=batch_size,
        apply_chat_template=apply_chat_template,
        max_forgetting=max_forgetting,
        min_target_gain=min_target_gain,
        seed=seed,
    )
    manifest = workspace.complete(
        run_id,
        "evaluation",
        inputs={**as_json(config), "trained": Manifest.load(tuned.path).fingerprint},
        work=lambda directory: evaluate_forgetting(config, directory),
    )
    directory = workspace.resolve(manifest.path)
    result = ForgettingReport.load(directory / "forgetting.json")
    metrics.log_metric("forgetting", result.forgetting)
    if result.target_gain is not None:
        metrics.log_metric("target_gain", result.target_gain)
    for task in result.tasks:
        metrics.log_metric(f"{task.task}_base", task.base)
        metrics.log_metric(f"{task.task}_tuned", task.tuned)
    shutil.copyfile(directory / "report.html", report.path)
    manifest.save(evaluation.path)
    Outputs = namedtuple("Outputs", ["forgetting", "target_gain", "passed"])
    return Outputs(result.forgetting, result.target_gain or 0.0, result.passed)
