"""The parts that the pipelines are made of: each adds its steps, and what their pods need, to the one being built.

Every function takes the pipeline's parameters by name, as ``given``: they are the same in all pipelines
(:mod:`pipelines.continual_learning` describes them).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineArtifactChannel, PipelineParameterChannel

from components.base_resolution import base_resolution
from components.baseline_evaluation import baseline_evaluation
from components.dataset_download import dataset_download
from components.forgetting_evaluation import forgetting_evaluation
from components.message_processing import message_processing
from components.message_validation import message_validation
from components.osft_training import osft_training
from components.training_placement import training_placement
from components.workspace_pruning import workspace_pruning
from pipelines.placement import (
    give_gpus,
    give_resources,
    give_secret,
    give_shared_memory,
    let_retry,
    mount_workspace,
)
from pipelines.promotion import promotion

Given = Mapping[str, Any]
"""Parameters of a pipeline, by name."""

RUN_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER
# The names that RHOAI's S3 connections give to the keys of their secrets.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION", "AWS_S3_BUCKET")
HUB_KEYS = ("HF_TOKEN",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a run starts from."""

    base: PipelineArtifactChannel
    model: PipelineParameterChannel
    rows: PipelineArtifactChannel
    valid: PipelineArtifactChannel

    has_new_rows: PipelineParameterChannel
    """Whether any row is left that no run before has seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Tokenized rows, and what the base scores on what every model of the run is asked."""

    processed: PipelineArtifactChannel
    baseline: PipelineTask

    asked: Given
    """What the evaluations are given. All are asked the same, or they would not find what the first has measured."""


def take_rows(given: Given) -> Start:
    """Pin the base, make room on the volume, and find the rows that no run before had."""
    base = base_resolution(
        run_id=RUN_ID,
        model_base=given["model_base"],
        model_origin=given["model_origin"],
        model_name=given["promote_model_name"],
        registry_address=given["registry_address"],
        registry_location=given["registry_location"],
        registry_claim=given["workspace_pvc"],
    )
    # At the beginning, so that there is room, and in a run without new rows too.
    pruning = workspace_pruning(
        model_name=given["promote_model_name"], keep_versions=given["keep_versions"], keep_runs=given["keep_runs"]
    )
    pruning.after(base)
    download = dataset_download(run_id=RUN_ID, uri=given["data_uri"], date=given["data_date"])
    validation = message_validation(
        run_id=RUN_ID,
        data_format=given["data_format"],
        on_invalid=given["data_on_invalid"],
        max_invalid_fraction=given["data_max_invalid_fraction"],
        document_column=given["data_document_column"],
        unmask_messages=given["data_unmask_messages"],
        since=given["data_since"],
        time_column=given["data_time_column"],
        max_seq_len=given["train_max_seq_len"],
        force=given["train_force"],
        base=base.outputs["base"],
        rows=download.outputs["rows"],
    )
    for task in (base, pruning, download, validation):
        give_resources(task, cpu="2", memory="8Gi")
        mount_workspace(task, given["workspace_pvc"])
    give_secret(download, given["data_s3_secret"], S3_KEYS)
    give_secret(download, given["model_hub_secret"], HUB_KEYS)
    return Start(
        base=base.outputs["base"],
        model=base.outputs["model"],
        rows=download.outputs["rows"],
        valid=validation.outputs["valid"],
        has_new_rows=validation.outputs["Output"],
    )


def measure_base(given: Given, start: Start) -> Measured:
    """Tokenize the rows, and ask the base what every model of the run is asked."""
    processing = message_processing(
        run_id=RUN_ID,
        model=start.model,
        data_format=given["data_format"],
        max_seq_len=given["train_max_seq_len"],
        unmask_messages=given["data_unmask_messages"],
        holdout_fraction=given["data_holdout_fraction"],
        on_too_long=given["data_on_too_long"],
        block_size=given["data_block_size"],
        document_column=given["data_document_column"],
        seed=given["train_seed"],
        valid=start.valid,
    )
    asked = _questions(given, start)
    baseline = baseline_evaluation(run_id=RUN_ID, **asked, processed=processing.outputs["processed"])
    give_resources(processing, cpu="2", memory="8Gi")
    for task in (processing, baseline):
        mount_workspace(task, given["workspace_pvc"])
        give_secret(task, given["model_hub_secret"], HUB_KEYS)
    _place_evaluation(given, baseline)
    return Measured(processed=processing.outputs["processed"], baseline=baseline, asked=asked)


def place_training(given: Given, run_id: str | PipelineParameterChannel = RUN_ID) -> PipelineTask:
    """Decide where the training of a run takes place, and ask the cluster whether it can."""
    names = (
        "runtime", "num_nodes", "gpus_per_node", "cpu", "memory", "image", "queue", "labels", "node_selector",
        "tolerations", "env", "deadline_hours",
    )  # fmt: skip
    placement = training_placement(
        run_id=run_id,
        **{name: given[f"train_{name}"] for name in names},
        hub_secret=given["model_hub_secret"],
        workspace_pvc=given["workspace_pvc"],
    )
    give_resources(placement, cpu="1", memory="2Gi")
    mount_workspace(placement, given["workspace_pvc"])
    return placement


def train_and_evaluate(
    given: Given,
    start: Start,
    measured: Measured,
    *,
    run_id: str | PipelineParameterChannel = RUN_ID,
    unfreeze_rank_ratio: PipelineParameterChannel,
    fail_run: bool | PipelineParameterChannel,
) -> tuple[PipelineTask, PipelineTask]:
    """Train a model and ask it what the base was asked.

    Args:
        given: parameters of the pipeline.
        start: what the run starts from.
        measured: its tokenized rows, and the base's scores.
        run_id: id of the run in whose folder the model goes.
        unfreeze_rank_ratio: share of each weight's singular directions that may move, 0 to 1.
        fail_run: whether a model that does not pass fails its evaluation.

    Returns:
        The training and the evaluation.
    """
    placement = place_training(given, run_id)
    # The placement also by name: KFP takes no step for a dependency by what its pod requests.
    training = osft_training(
        run_id=run_id,
        calibration=given["model_calibration"],
        unfreeze_rank_ratio=unfreeze_rank_ratio,
        learning_rate=given["train_learning_rate"],
        num_epochs=given["train_num_epochs"],
        effective_batch_size=given["train_effective_batch_size"],
        max_tokens_per_gpu=given["train_max_tokens_per_gpu"],
        max_seq_len=given["train_max_seq_len"],
        lr_scheduler=given["train_lr_scheduler"],
        warmup_steps=given["train_warmup_steps"],
        target_patterns=given["train_target_patterns"],
        remember=given["train_remember"],
        save_memory=given["train_save_memory"],
        use_liger=given["train_use_liger"],
        seed=given["train_seed"],
        checkpoint_every_minutes=given["train_checkpoint_every_minutes"],
        trainjob=placement.outputs["trainjob"],
        base=start.base,
        processed=measured.processed,
    ).after(measured.baseline, placement)
    give_resources(training, cpu=placement.outputs["cpu"], memory=placement.outputs["memory"])
    give_gpus(training, placement.outputs["gpus"])
    give_shared_memory(training)
    let_retry(training)
    evaluation = forgetting_evaluation(
        run_id=run_id,
        **measured.asked,
        fail_run=fail_run,
        processed=measured.processed,
        baseline=measured.baseline.outputs["baseline"],
        tuned=training.outputs["tuned"],
    )
    _place_evaluation(given, evaluation)
    for task in (training, evaluation):
        mount_workspace(task, given["workspace_pvc"])
        give_secret(task, given["model_hub_secret"], HUB_KEYS)
    return training, evaluation


def promote(
    given: Given,
    start: Start,
    *,
    passed: PipelineParameterChannel,
    tuned: PipelineArtifactChannel,
    evaluation: PipelineArtifactChannel,
) -> None:
    """Publish a model that passed, and register it if a registry is given."""
    promotion(
        passed=passed,
        run_id=RUN_ID,
        model_name=given["promote_model_name"],
        registry_address=given["registry_address"],
        registry_location=given["registry_location"],
        registry_secret=given["registry_secret"],
        workspace_pvc=given["workspace_pvc"],
        base=start.base,
        tuned=tuned,
        evaluation=evaluation,
    ).set_caching_options(False)


def _questions(given: Given, start: Start) -> Given:
    """Return the arguments that all evaluations of a run have in common."""
    names = (
        "tasks", "target_tasks", "include_path", "num_fewshot", "limit", "batch_size", "apply_chat_template",
        "generation", "probe", "backend", "gpus", "max_forgetting", "max_cumulative_forgetting", "task_limits",
        "min_target_gain", "seed",
    )  # fmt: skip
    return {name: given[f"eval_{name}"] for name in names} | {"base": start.base}


def _place_evaluation(given: Given, task: PipelineTask) -> None:
    """Give an evaluation what its pod needs."""
    give_resources(task, cpu="4", memory="32Gi")
    give_gpus(task, given["eval_gpus"])
    give_shared_memory(task)
