"""The continual-learning pipeline: new data in, a tuned model out, and the evidence of what it forgot.

Run again and again it is a chain: with ``model_base=promoted://<name>`` each run starts from what the last one
achieved, takes the rows that no run before it had, and is held against all versions before it. A run without new rows
ends after the validation.
"""

from kfp import dsl

from pipelines.steps import measure_base, promote, take_rows, train_and_evaluate


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
    registry_address: str = "",
    registry_location: str = "",
    registry_secret: str = "osft-model-registry",  # noqa: S107 its name
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
        model_calibration: Text (JSONL on the volume) of what the origin must keep. Empty: its weights' directions.
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
        registry_address: Model Registry to register a published model in, https://host[:port]. Empty: none.
        registry_location: Where the registry says that the volume is, e.g. s3://bucket/prefix. Empty: pvc://claim.
        registry_secret: Secret with MODEL_REGISTRY_TOKEN, MODEL_REGISTRY_CA_CERT. Optional inside the cluster.
        keep_versions: Newest versions of that name that keep their weights; 0 keeps all.
        keep_runs: Newest finished runs of that name whose folders stay; 0 keeps all.
        workspace_pvc: Claim of the shared volume (ReadWriteMany).

    Returns:
        Manifest of what the run started from.
    """
    given = locals()
    start = take_rows(given)
    with dsl.If(start.has_new_rows == True, name="new-rows"):  # noqa: E712 kfp builds the condition from ==
        measured = measure_base(given, start)
        training, evaluation = train_and_evaluate(
            given, start, measured, unfreeze_rank_ratio=train_unfreeze_rank_ratio, fail_run=eval_fail_run
        )
        promote(
            given,
            start,
            passed=evaluation.outputs["passed"],
            tuned=training.outputs["tuned"],
            evaluation=evaluation.outputs["evaluation"],
        )
    return start.base
