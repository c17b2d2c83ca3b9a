"""Step 5: OSFT on the tokenized rows, on the step's own GPUs or in a TrainJob that the step creates and follows."""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def osft_training(
    run_id: str,
    calibration: str,
    unfreeze_rank_ratio: float,
    learning_rate: float,
    num_epochs: int,
    effective_batch_size: int,
    max_tokens_per_gpu: int,
    max_seq_len: int,
    lr_scheduler: str,
    warmup_steps: int,
    target_patterns: list,
    remember: bool,
    save_memory: bool,
    use_liger: bool,
    seed: int,
    checkpoint_every_minutes: float,
    trainjob: str,
    base: dsl.Input[dsl.Artifact],
    processed: dsl.Input[dsl.Dataset],
    tuned: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    loss_chart: dsl.Output[dsl.HTML],
) -> None:
    """Train and write the model to ``runs/<run_id>/training/final``; a retried step goes on from the last checkpoint.

    Args:
        run_id: id of the pipeline run.
        calibration: text of what the base must keep, where a memory begins; empty: its weights' directions.
        unfreeze_rank_ratio: share of each weight's singular directions that may move, 0 to 1.
        learning_rate: peak learning rate.
        num_epochs: passes over the data.
        effective_batch_size: samples per optimizer step.
        max_tokens_per_gpu: most tokens through the model at once.
        max_seq_len: longest row in tokens.
        lr_scheduler: schedule's name in transformers.
        warmup_steps: steps of linear warm-up.
        target_patterns: regular expressions over module names; empty: all of attention and MLP.
        remember: protect the memory of what the base learnt, and leave one with what this run learnt.
        save_memory: moments in bfloat16, and in one process what is needed once a step in the host's memory.
        use_liger: patch the model with Liger kernels.
        seed: seed of the order of the rows.
        checkpoint_every_minutes: minutes between two checkpoints.
        trainjob: what the step training_placement wrote; empty: train in this step.
        base: manifest of what the run starts from: the base model and its memory.
        processed: manifest of the tokenized rows.
        tuned: manifest of the trained model.
        metrics: losses, steps, seconds.
        loss_chart: loss over the steps.
    """
    import shutil
    from pathlib import Path
    from typing import Any

    from osft import osft
    from osft.config import TrainingConfig
    from osft.file_hashes import sha256_of_path
    from osft.kubeflow.run import train_on_cluster
    from osft.kubeflow.trainjob import TrainJobSettings
    from osft.logs import configure_logging
    from osft.training.result import TrainingResult
    from osft.versions.base_model import BaseModel
    from osft.workspace import Manifest, Workspace

    configure_logging()
    workspace = Workspace.from_environment()
    start = BaseModel.load(workspace.directory_of(base.path))
    parameters: dict[str, Any] = {
        "model_path": workspace.locate(start.model),
        "unfreeze_rank_ratio": unfreeze_rank_ratio,
        "learning_rate": learning_rate,
        "num_epochs": num_epochs,
        "effective_batch_size": effective_batch_size,
        "max_tokens_per_gpu": max_tokens_per_gpu,
        "max_seq_len": max_seq_len,
        "lr_scheduler": lr_scheduler,
        "warmup_steps": warmup_steps,
        "target_patterns": tuple(target_patterns) or None,
        "remember": remember,
        "subspace_memory": str(workspace.resolve(start.memory)) if remember and start.memory else None,
        # Where a memory goes on, what the origin must keep is in it.
        "calibration": workspace.locate(calibration) if remember and calibration and not start.memory else None,
        "save_memory": save_memory,
        "use_liger": use_liger,
        "seed": seed,
    }
    given = {
        **parameters,
        "data_path": str(workspace.directory_of(processed.path) / "train.parquet"),
        "use_processed_dataset": True,
        "decomposition_cache": str(workspace.decompositions),
        "checkpoint_every_minutes": checkpoint_every_minutes,
    }
    manifest = workspace.complete(
        run_id,
        "training",
        inputs={
            **parameters,
            "start": Manifest.load(base.path).fingerprint,
            "processed": Manifest.load(processed.path).fingerprint,
            "calibration_sha256": sha256_of_path(Path(parameters["calibration"]))
            if parameters["calibration"]
            else None,
        },
        work=lambda directory: (
            train_on_cluster(
                TrainingConfig(**given, ckpt_output_dir=str(directory)),
                TrainJobSettings.from_json(trainjob),
                run_id=run_id,
                workspace=workspace,
            )
            if trainjob
            else osft(**given, ckpt_output_dir=str(directory))
        ),
        resumable=True,
    )
    result = TrainingResult.load(workspace.resolve(manifest.path))
    for name in ("first_loss", "final_loss", "steps", "samples", "trainable_parameters", "seconds"):
        metrics.log_metric(f"train_{name}", getattr(result, name))
    shutil.copyfile(result.loss_chart, loss_chart.path)
    tuned.metadata.update(path=f"{manifest.path}/final", base=start.model)
    manifest.save(tuned.path)
