"""Step 4: lm-eval on the base model alone, before GPU hours go into the training.

A task that is misspelt or cannot be reached, a limit that is none, or a model that cannot be asked ends the run here.
What is measured is kept on the workspace, so the evaluation after the training asks the tuned model only, and a run on
a base that is known already costs seconds here.
"""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def baseline_evaluation(
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
    seed: int,
    base: dsl.Input[dsl.Artifact],
    processed: dsl.Input[dsl.Dataset],
    baseline: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Measure the base model on all that the tuned one will be asked, and write ``runs/<run_id>/baseline``.

    Args:
        run_id: id of the pipeline run.
        tasks: retention tasks of lm-eval, separated by commas.
        target_tasks: lm-eval tasks of the new domain, separated by commas.
        include_path: folder of the user's own task files; empty: none.
        num_fewshot: examples before each question, or ``auto``.
        limit: documents a task; 0 takes all.
        batch_size: prompts through the model at once; 0 finds out what fits.
        apply_chat_template: ask through the model's chat template, if it has one.
        generation: overrides of the tasks' generation settings.
        probe: text that the models are compared on; empty: none.
        backend: what runs the models, ``hf`` or ``vllm``.
        gpus: how many GPUs the step was given.
        max_forgetting: limit of the forgetting; checked here, applied after the training.
        max_cumulative_forgetting: the same against the best of all versions before.
        task_limits: limits of single tasks; the same.
        min_target_gain: limit of the gain; the same.
        seed: seed of the few-shot examples.
        base: manifest of what the run starts from: the base model, and the versions that it descends from.
        processed: manifest of the tokenized rows; the held-out ones are evaluated.
        baseline: manifest of the scores.
        metrics: the score of each task.
    """
    from osft.evaluation.evaluate import BASELINE_NAME, measure_baseline
    from osft.evaluation.models.placement import warn_of_missing_gpus
    from osft.evaluation.parameters import EvaluationParameters, describe_inputs, make_config
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
    model = workspace.locate(start.model)
    manifest = workspace.complete(
        run_id,
        "baseline",
        inputs={
            **describe_inputs(model, config),
            "start": Manifest.load(base.path).fingerprint,
            "processed": Manifest.load(processed.path).fingerprint,
        },
        work=lambda directory: measure_baseline(model, config, directory, cache=workspace.evaluations),
    )
    for task, score in read_json(workspace.resolve(manifest.path) / BASELINE_NAME)["scores"].items():
        metrics.log_metric(f"baseline.{task}", score)
    manifest.save(baseline.path)
