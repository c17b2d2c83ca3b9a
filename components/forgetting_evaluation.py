"""Step 6: lm-eval on the base and the tuned model: what was lost, what was gained, and whether that is acceptable."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def forgetting_evaluation(
    run_id: str,
    tasks: str,
    target_tasks: str,
    include_path: str,
    num_fewshot: str,
    limit: int,
    batch_size: int,
    apply_chat_template: bool,
    generation: dict,
    probe: str,
    backend: str,
    gpus: str,
    max_forgetting: float,
    max_cumulative_forgetting: float,
    task_limits: dict,
    min_target_gain: float,
    fail_run: bool,
    seed: int,
    base: dsl.Input[dsl.Artifact],
    processed: dsl.Input[dsl.Dataset],
    baseline: dsl.Input[dsl.Artifact],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> NamedTuple(  # type: ignore[valid-type]
    "Outputs", [("forgetting", float), ("forgetting_upper", float), ("target_gain", float), ("passed", bool)]
):
    """Evaluate the tuned model, compare it with the base, and write the report to ``runs/<run_id>/evaluation``.

    Args:
        run_id: id of the pipeline run.
        tasks: retention tasks of lm-eval, separated by commas.
        target_tasks: lm-eval tasks of the new domain, separated by commas; the held-out rows always count as one.
        include_path: folder of the user's own task files; empty: none.
        num_fewshot: examples before each question, a number, or ``auto`` for each task's own.
        limit: documents a task; 0 takes all.
        batch_size: prompts through the model at once; 0 finds out what fits.
        apply_chat_template: ask through the model's chat template, if it has one.
        generation: overrides of the tasks' generation settings.
        probe: text on which the two models' next tokens are compared; empty: none.
        backend: what runs the models, ``hf`` or ``vllm``.
        gpus: how many GPUs the step was given.
        max_forgetting: what the upper confidence bound of the forgetting may be at most, 0 to 1.
        max_cumulative_forgetting: the same against the best that any version before reached on each task.
        task_limits: the same for single retention tasks, by name.
        min_target_gain: smallest mean gain over the target tasks that passes.
        fail_run: a model that does not pass fails the step, once its report is written.
        seed: seed of the few-shot examples and of the confidence intervals.
        base: manifest of what the run starts from: the base model, and the versions that it descends from.
        processed: manifest of the tokenized rows; the held-out ones are evaluated.
        baseline: manifest of what the base model scored before the training.
        tuned: manifest of the trained model.
        evaluation: manifest of the results.
        metrics: forgetting, gain, both scores of each task, and the settings that people compare.
        report: what was forgotten, as a page.
        summary: the same in short, for a UI that shows no pages.

    Returns:
        Mean loss over the retention tasks and its upper confidence bound, mean gain over the target tasks (0 when
        there is none), and whether all are within their limits.
    """
    import shutil
    from collections import namedtuple

    from osft.evaluation.evaluate import BASELINE_NAME, HTML_NAME, MARKDOWN_NAME, REPORT_NAME, evaluate_forgetting
    from osft.evaluation.models.placement import warn_of_missing_gpus
    from osft.evaluation.parameters import (
        EvaluationParameters,
        data_summary,
        describe_inputs,
        fail_unless_passed,
        make_config,
        training_settings,
    )
    from osft.evaluation.report.forgetting_report import ForgettingReport
    from osft.evaluation.report.metrics import flat_metrics
    from osft.logs import configure_logging
    from osft.versions.base_model import BaseModel
    from osft.workspace import Manifest, Workspace, read_json

    configure_logging()
    warn_of_missing_gpus(gpus)
    workspace = Workspace.from_environment()
    parameters = EvaluationParameters(
        tasks=tasks,
        target_tasks=target_tasks,
        include_path=include_path,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        apply_chat_template=apply_chat_template,
        generation=generation,
        probe=probe,
        backend=backend,
        max_forgetting=max_forgetting,
        max_cumulative_forgetting=max_cumulative_forgetting,
        task_limits=task_limits,
        min_target_gain=min_target_gain,
        seed=seed,
    )
    start = BaseModel.load(workspace.directory_of(base.path))
    config = make_config(parameters, workspace, processed=workspace.directory_of(processed.path), ancestry=start)
    model, trained = workspace.locate(start.model), Manifest.load(tuned.path)
    manifest = workspace.complete(
        run_id,
        "evaluation",
        inputs={
            **describe_inputs(model, config),
            "start": Manifest.load(base.path).fingerprint,
            "processed": Manifest.load(processed.path).fingerprint,
            "baseline": Manifest.load(baseline.path).fingerprint,
            "trained": trained.fingerprint,
        },
        work=lambda directory: evaluate_forgetting(
            model,
            str(workspace.resolve(f"{trained.path}/final")),
            config,
            directory,
            cache=workspace.evaluations,
            base_fingerprint=read_json(workspace.directory_of(baseline.path) / BASELINE_NAME)["fingerprint"],
            training=training_settings(trained),
            data=data_summary(workspace.run_directory(run_id)),
        ),
    )
    directory = workspace.resolve(manifest.path)
    result = ForgettingReport.load(directory / REPORT_NAME)
    for name, value in flat_metrics(result).items():
        metrics.log_metric(name, value)
    shutil.copyfile(directory / HTML_NAME, report.path)
    shutil.copyfile(directory / MARKDOWN_NAME, summary.path)
    manifest.save(evaluation.path)
    if fail_run:
        fail_unless_passed(result, directory / HTML_NAME)
    Outputs = namedtuple("Outputs", ["forgetting", "forgetting_upper", "target_gain", "passed"])
    return Outputs(result.forgetting, result.forgetting_upper, result.target_gain or 0.0, result.passed)
