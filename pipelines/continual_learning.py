"""The continual-learning pipeline: new data in, a tuned model out, and the evidence of what it forgot.

Run again and again it is a chain: with ``model_base=promoted://<name>`` each run starts from what the last one
achieved, takes the rows that no run before it had, and is held against all versions before it. A run without new rows
ends after the validation.
"""

from typing import Any

from kfp import dsl

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

# The names that RHOAI's S3 connections give to the keys of their secrets.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION", "AWS_S3_BUCKET")


@dsl.pipeline(
    name="osft-continual-learning",
    description="Fine-tune a language model on new data with OSFT and measure what it forgot.",
)
def continual_learning(
    data_uri: str,
    data_date: str = "now",
    data_since: str = "",
    data_time_column: str = "timestamp",
    data_format: str = "messages",
    data_on_invalid: str = "fail",
    data_max_invalid_fraction: float = 0.0,
    data_holdout_fraction: float = 0.1,
    data_on_too_long: str = "drop",
    data_unmask_messages: bool = False,
    data_block_size: int = 2048,
    data_document_column: str = "document",
    data_s3_secret: str = "osft-data-s3",  # noqa: S107 its name
    model_base: str = "Qwen/Qwen2.5-1.5B-Instruct",
    model_origin: str = "",
    model_calibration: str = "",
    model_hub_secret: str = "osft-hugging-face",  # noqa: S107 its name
    train_unfreeze_rank_ratio: float = 0.25,
    train_learning_rate: float = 2e-5,
    train_num_epochs: int = 3,
    train_effective_batch_size: int = 32,
    train_max_tokens_per_gpu: int = 8192,
    train_max_seq_len: int = 2048,
    train_lr_scheduler: str = "cosine",
    train_warmup_steps: int = 0,
    train_target_patterns: list = [],  # noqa: B006 kfp reads the default and never calls this with it
    train_remember: bool = True,
    train_force: bool = False,
    train_save_memory: bool = False,
    train_use_liger: bool = False,
    train_seed: int = 42,
    train_checkpoint_every_minutes: float = 30.0,
    train_gpus_per_node: int = 1,
    train_cpu: str = "8",
    train_memory: str = "64Gi",
    train_runtime: str = "",
    train_num_nodes: int = 1,
    train_image: str = "",
    train_queue: str = "",
    train_labels: dict = {},  # noqa: B006 as above
    train_node_selector: dict = {},  # noqa: B006 as above
    train_tolerations: list = [],  # noqa: B006 as above
    train_env: dict = {},  # noqa: B006 as above
    train_deadline_hours: float = 0.0,
    eval_tasks: str = "arc_easy,hellaswag",
    eval_target_tasks: str = "",
    eval_include_path: str = "",
    eval_num_fewshot: str = "auto",
    eval_limit: int = 0,
    eval_batch_size: int = 16,
    eval_apply_chat_template: bool = True,
    eval_generation: dict = {},  # noqa: B006 as above
    eval_probe: str = "",
    eval_backend: str = "hf",
    eval_max_forgetting: float = 0.05,
    eval_max_cumulative_forgetting: float = 0.1,
    eval_task_limits: dict = {},  # noqa: B006 as above
    eval_min_target_gain: float = 0.0,
    eval_fail_run: bool = False,
    eval_seed: int = 42,
    eval_gpus: str = "1",
    promote_model_name: str = "continual-model",
    keep_versions: int = 5,
    keep_runs: int = 10,
    workspace_pvc: str = "osft-workspace",
) -> dsl.Artifact:
    """Fine-tune a language model on new data with OSFT and measure what it forgot.

    Args:
        data_uri: Where the rows are: pvc://relative/path, /path, hf://name[:config][@revision], https:// or s3://.
        data_date: What {date:%Y-%m-%d} in data_uri stands for: a time in ISO 8601, now, or P1D/now for a day before.
        data_since: Take rows from then on: a time in ISO 8601, or P7D/now. Empty: of any time.
        data_time_column: Key of a row's time, with data_since.
        data_format: What a row is: messages, sharegpt, alpaca, prompt_completion, documents, processed, or auto.
        data_on_invalid: What a bad row does: fail the run, or drop (it is quarantined).
        data_max_invalid_fraction: With drop, the largest share of bad rows that is accepted, 0 to 1.
        data_holdout_fraction: Expected share of the rows that is not trained on but evaluated, 0 to 1.
        data_on_too_long: What happens to a row above train_max_seq_len: drop, truncate or fail.
        data_unmask_messages: Train on all messages but the system's, not on the assistant's alone.
        data_block_size: Tokens of a block, when data_format is documents.
        data_document_column: Column of the text, when data_format is documents.
        data_s3_secret: Secret with the AWS_* keys of an S3 connection. Optional.
        model_base: Model to start from: a Hugging Face id, pvc://path, /path, or promoted://name, its current version.
        model_origin: What promoted:// stands for while nothing is promoted.
        model_calibration: Text (JSONL on the volume) of what the origin must keep. Empty: texts that it samples itself.
        model_hub_secret: Secret with HF_TOKEN, for gated models and data sets. Optional.
        train_unfreeze_rank_ratio: Share of each weight's singular directions that may move, 0 to 1.
        train_learning_rate: Peak learning rate of AdamW.
        train_num_epochs: Passes over the data.
        train_effective_batch_size: Samples per optimizer step, over all GPUs.
        train_max_tokens_per_gpu: Most tokens that a GPU takes at once.
        train_max_seq_len: Longest row in tokens.
        train_lr_scheduler: Name of a learning-rate schedule of transformers.
        train_warmup_steps: Steps of linear warm-up.
        train_target_patterns: Regular expressions over module names. Empty trains all of attention and MLP.
        train_remember: Protect a memory of what all versions before learnt, and leave one with this version.
        train_force: Train once more on what earlier runs were trained on; what they held out stays out.
        train_save_memory: Keep moments in bfloat16, and in one process what is needed once a step in the host's memory.
        train_use_liger: Use Liger's kernels.
        train_seed: Seed of the split and of the order of the rows.
        train_checkpoint_every_minutes: Minutes between two checkpoints, from which a stopped training goes on. 0: none.
        train_gpus_per_node: GPUs of the training step, or of each node of a TrainJob.
        train_cpu: CPUs of the training step, or of each node.
        train_memory: Memory of the training step, or of each node.
        train_runtime: Runtime of Kubeflow Trainer to train with in a TrainJob, e.g. torch-distributed. Empty: the step.
        train_num_nodes: Nodes of the TrainJob.
        train_image: Image of its pods. Empty: the training step's.
        train_queue: Kueue's LocalQueue of the TrainJob. Optional.
        train_labels: Further labels of the TrainJob, e.g. {"kueue.x-k8s.io/priority-class": "high"}.
        train_node_selector: Labels of the machines for its pods, e.g. {"nvidia.com/gpu.product": "NVIDIA-L40S"}.
        train_tolerations: Taints that its pods tolerate, e.g. [{"key": "nvidia.com/gpu", "operator": "Exists"}].
        train_env: Environment variables of its pods, e.g. {"NCCL_DEBUG": "INFO"}. Not for secrets: they are shown.
        train_deadline_hours: Hours after the step's first try at which the TrainJob is deleted and it fails. 0: never.
        eval_tasks: lm-eval tasks that stand for what must be kept, separated by commas.
        eval_target_tasks: lm-eval tasks of the new domain. The held-out rows are always evaluated.
        eval_include_path: Folder with lm-eval task files of your own, e.g. pvc://tasks.
        eval_num_fewshot: Examples before each question: a number, or auto for each task's own.
        eval_limit: Documents a task; 0 takes all.
        eval_batch_size: Prompts that go through the model at once; 0 finds out what fits.
        eval_apply_chat_template: Ask through the model's chat template, if it has one.
        eval_generation: Overrides of the tasks' generation settings, e.g. {"max_gen_toks": 256}.
        eval_probe: Text (.txt, .md or .jsonl, e.g. pvc://probe.txt) to compare both models' next tokens on. Optional.
        eval_backend: What runs the models: hf (transformers) or vllm.
        eval_max_forgetting: What the upper 95% confidence bound of the forgetting may be at most, 0 to 1.
        eval_max_cumulative_forgetting: The same against the best that any version before reached on each task.
        eval_task_limits: The same for single retention tasks, e.g. {"gsm8k": 0.02}.
        eval_min_target_gain: Smallest mean gain over the target tasks that is promoted.
        eval_fail_run: A model that does not pass fails the run. By default the run succeeds and promotes nothing.
        eval_seed: Seed of few-shot examples and confidence intervals.
        eval_gpus: GPUs of the two evaluation steps, 0 for none.
        promote_model_name: Name under which a model that passed is published on the workspace.
        keep_versions: Newest versions of that name that keep their weights; 0 keeps all.
        keep_runs: Newest finished runs of that name whose folders stay; 0 keeps all.
        workspace_pvc: Claim of the shared volume (ReadWriteMany).

    Returns:
        Manifest of what the run started from.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER

    base = base_resolution(
        run_id=run_id, model_base=model_base, model_origin=model_origin, model_name=promote_model_name
    )

    # At the beginning, so that there is room, and in a run without new rows too.
    pruning = workspace_pruning(model_name=promote_model_name, keep_versions=keep_versions, keep_runs=keep_runs)
    pruning.after(base)

    download = dataset_download(run_id=run_id, uri=data_uri, date=data_date)

    validation = message_validation(
        run_id=run_id,
        data_format=data_format,
        on_invalid=data_on_invalid,
        max_invalid_fraction=data_max_invalid_fraction,
        document_column=data_document_column,
        unmask_messages=data_unmask_messages,
        since=data_since,
        time_column=data_time_column,
        max_seq_len=train_max_seq_len,
        force=train_force,
        base=base.outputs["base"],
        rows=download.outputs["rows"],
    )

    for task in (base, pruning, download, validation):
        give_resources(task, cpu="2", memory="8Gi")
        mount_workspace(task, workspace_pvc)
    give_secret(download, data_s3_secret, S3_KEYS)
    give_secret(download, model_hub_secret, ("HF_TOKEN",))

    with dsl.If(validation.outputs["Output"] == True, name="new-rows"):  # noqa: E712 kfp builds the condition from ==
        processing = message_processing(
            run_id=run_id,
            model=base.outputs["model"],
            data_format=data_format,
            max_seq_len=train_max_seq_len,
            unmask_messages=data_unmask_messages,
            holdout_fraction=data_holdout_fraction,
            on_too_long=data_on_too_long,
            block_size=data_block_size,
            document_column=data_document_column,
            seed=train_seed,
            valid=validation.outputs["valid"],
        )

        # Both models are asked the same, or the second step would not find what the first has measured.
        asked: dict[str, Any] = {
            "run_id": run_id,
            "tasks": eval_tasks,
            "target_tasks": eval_target_tasks,
            "include_path": eval_include_path,
            "num_fewshot": eval_num_fewshot,
            "limit": eval_limit,
            "batch_size": eval_batch_size,
            "apply_chat_template": eval_apply_chat_template,
            "generation": eval_generation,
            "probe": eval_probe,
            "backend": eval_backend,
            "gpus": eval_gpus,
            "max_forgetting": eval_max_forgetting,
            "max_cumulative_forgetting": eval_max_cumulative_forgetting,
            "task_limits": eval_task_limits,
            "min_target_gain": eval_min_target_gain,
            "seed": eval_seed,
            "base": base.outputs["base"],
        }
        baseline = baseline_evaluation(
            **asked,
            processed=processing.outputs["processed"],
        )

        placement = training_placement(
            run_id=run_id,
            runtime=train_runtime,
            num_nodes=train_num_nodes,
            gpus_per_node=train_gpus_per_node,
            cpu=train_cpu,
            memory=train_memory,
            image=train_image,
            queue=train_queue,
            labels=train_labels,
            node_selector=train_node_selector,
            tolerations=train_tolerations,
            env=train_env,
            deadline_hours=train_deadline_hours,
            hub_secret=model_hub_secret,
            workspace_pvc=workspace_pvc,
        )

        # The placement also by name: KFP takes no step for a dependency by what its pod requests.
        training = osft_training(
            run_id=run_id,
            calibration=model_calibration,
            unfreeze_rank_ratio=train_unfreeze_rank_ratio,
            learning_rate=train_learning_rate,
            num_epochs=train_num_epochs,
            effective_batch_size=train_effective_batch_size,
            max_tokens_per_gpu=train_max_tokens_per_gpu,
            max_seq_len=train_max_seq_len,
            lr_scheduler=train_lr_scheduler,
            warmup_steps=train_warmup_steps,
            target_patterns=train_target_patterns,
            remember=train_remember,
            save_memory=train_save_memory,
            use_liger=train_use_liger,
            seed=train_seed,
            checkpoint_every_minutes=train_checkpoint_every_minutes,
            trainjob=placement.outputs["trainjob"],
            base=base.outputs["base"],
            processed=processing.outputs["processed"],
        ).after(baseline, placement)

        evaluation = forgetting_evaluation(
            **asked,
            fail_run=eval_fail_run,
            processed=processing.outputs["processed"],
            baseline=baseline.outputs["baseline"],
            tuned=training.outputs["tuned"],
        )

        promotion(
            passed=evaluation.outputs["passed"],
            run_id=run_id,
            model_name=promote_model_name,
            workspace_pvc=workspace_pvc,
            base=base.outputs["base"],
            tuned=training.outputs["tuned"],
            evaluation=evaluation.outputs["evaluation"],
        ).set_caching_options(False)

        give_resources(processing, cpu="2", memory="8Gi")
        give_resources(placement, cpu="1", memory="2Gi")
        give_resources(training, cpu=placement.outputs["cpu"], memory=placement.outputs["memory"])
        give_gpus(training, placement.outputs["gpus"])
        for task in (baseline, evaluation):
            give_resources(task, cpu="4", memory="32Gi")
            give_gpus(task, eval_gpus)
        for task in (baseline, training, evaluation):
            give_shared_memory(task)
        let_retry(training)
        for task in (processing, baseline, placement, training, evaluation):
            mount_workspace(task, workspace_pvc)
        for task in (processing, baseline, training, evaluation):
            give_secret(task, model_hub_secret, ("HF_TOKEN",))

    return base.outputs["base"]
