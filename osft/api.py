"""The public call: ``osft()`` and its class form, their checks, and the choice of the backend."""

import difflib
import importlib.util
import logging
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from osft.config import TrainingConfig
from osft.errors import ConfigError, MissingPathError, TrainingError
from osft.logs import ensure_logging

logger = logging.getLogger(__name__)

BACKENDS = ("native", "mini-trainer")


def osft(
    model_path: str,
    data_path: str,
    unfreeze_rank_ratio: float,
    effective_batch_size: int,
    max_tokens_per_gpu: int,
    max_seq_len: int,
    learning_rate: float,
    ckpt_output_dir: str,
    data_output_dir: str | None = None,
    backend: str = "native",
    target_patterns: list[str] | None = None,
    seed: int | None = None,
    use_liger: bool | None = None,
    use_processed_dataset: bool | None = None,
    unmask_messages: bool | None = None,
    is_pretraining: bool | None = None,
    block_size: int | None = None,
    document_column_name: str | None = None,
    lr_scheduler: str | None = None,
    warmup_steps: int | None = None,
    lr_scheduler_kwargs: dict[str, str] | None = None,
    checkpoint_at_epoch: bool | None = None,
    save_final_checkpoint: bool | None = None,
    num_epochs: int | None = None,
    nproc_per_node: int | None = None,
    nnodes: int | None = None,
    node_rank: int | None = None,
    rdzv_id: int | None = None,
    rdzv_endpoint: str | None = None,
    **kwargs: Any,
) -> Any:
    """Fine-tune a model on new data in the directions that it does not use for what it knows.

    Every target weight ``W0`` ends as ``W`` with ``U_k^T (W - W0) = 0`` and ``(W - W0) V_k = 0``, where ``U_k`` and
    ``V_k`` are its leading singular directions (arXiv:2504.07097). What is not a target does not change. Options can
    choose otherwise (``protect_inputs_of``, ``subspace_memory``, ``remember``, ``train_other_parameters``).

    ``None`` means the default of :class:`osft.config.TrainingConfig`.

    Args:
        model_path: local folder or Hugging Face id of a causal language model with safetensors weights.
        data_path: JSONL of messages or documents; with ``use_processed_dataset``, JSONL or parquet of token ids.
        unfreeze_rank_ratio: share of each weight's singular directions that may move, 0 to 1. 0.25 keeps most of
            what the model does; 0.5 and above adapt more.
        effective_batch_size: samples per optimizer step, over all processes and micro-batches.
        max_tokens_per_gpu: most tokens that one process takes through the model at once. Samples are packed without
            padding; for a model that cannot take them so, padding counts.
        max_seq_len: longest sample in tokens; longer ones are left out, counted and logged.
        learning_rate: peak learning rate of AdamW.
        ckpt_output_dir: folder for checkpoints, metrics and the final model.
        data_output_dir: folder for validated and tokenized data. Default: ``data`` in ``ckpt_output_dir``.
        backend: ``"native"``, this library's engine, or ``"mini-trainer"``, which hands the same arguments to the
            package training-hub.
        target_patterns: regular expressions; a linear layer (by its module's name) or a stack of experts (by module
            and parameter) is trained if its name contains a match of one. Default: all of attention and MLP.
        seed: seed of the order of the samples and of PyTorch. Default: 42.
        use_liger: patch the model with Liger kernels; needs the package liger-kernel and a GPU. Default: False.
        use_processed_dataset: the data has ``input_ids`` and ``labels`` already. Default: False.
        unmask_messages: train on all messages but the system's. Default: False, the assistant's alone.
        is_pretraining: the data are documents, cut into blocks. Default: False.
        block_size: tokens in a block; needed with ``is_pretraining``.
        document_column_name: column of the documents. Default: ``"document"``.
        lr_scheduler: a schedule's name in transformers. Default: ``"cosine"``.
        warmup_steps: optimizer steps of linear warm-up. Default: 0.
        lr_scheduler_kwargs: further arguments of the schedule; numbers may be given as text.
        checkpoint_at_epoch: save the model after each epoch, as ``epoch_<n>``. Default: False.
        save_final_checkpoint: save the model after the last step, as ``final``. Default: True.
        num_epochs: passes over the data. Default: 1.
        nproc_per_node: processes on this node. Default: one a GPU, one on a machine without. This and the four below
            are left out where torchrun or Kubeflow Trainer has prepared the environment: the call joins that.
        nnodes: nodes of the run. Default: 1.
        node_rank: number of this node, from 0. Default: 0.
        rdzv_id: id that the nodes of one run share; needed with more than one node.
        rdzv_endpoint: ``host:port`` of node 0, on node 0 ``0.0.0.0:port``; needed with more than one node.
        **kwargs: of the native backend the other fields of :class:`osft.config.TrainingConfig`:
            ``protect_inputs_of``, ``protect_weights``, ``subspace_memory`` (the folder of what earlier runs learnt,
            which is protected), ``remember`` (leave such a folder, ``memory``), ``calibration`` and ``base_memory``
            (what the first one of a chain begins with), ``rank_allocation``, ``train_other_parameters``,
            ``save_memory``, ``decomposition_cache``, ``parametrization``, ``step_timeout_minutes``, and ``beta1``,
            ``beta2``, ``eps`` and ``weight_decay`` of AdamW; and those of the states on disk from which the same call
            goes on after an interruption: ``checkpoint_every_steps``, ``checkpoint_every_minutes`` (30 by default),
            ``keep_checkpoints`` (2, the newest) and ``resume``: ``"auto"``, go on from what ``ckpt_output_dir`` holds,
            an error if that is of another configuration; ``"never"``, remove it and start anew; ``"must"``, an error
            if there is nothing. Of mini-trainer whatever it takes.

    Returns:
        Of the native backend, a :class:`osft.training.result.TrainingResult` (``None`` on a node that does not see
        the files of node 0); of mini-trainer, what it returns.

    Raises:
        ValueError: if a parameter is missing or not allowed, or the data is not what its format says.
        FileNotFoundError: if ``model_path`` or ``data_path`` does not exist.
        RuntimeError: if training fails or the backend is not available.
    """
    parameters = {name: value for name, value in locals().items() if name not in ("backend", "kwargs")}
    return OSFTAlgorithm(backend).train(**parameters, **kwargs)


class OSFTAlgorithm:
    """The class form of :func:`osft`: choose a backend once, then train."""

    def __init__(self, backend: str = "native") -> None:
        """Check the backend.

        Raises:
            ValueError: if it is unknown.
            RuntimeError: if it is ``"mini-trainer"`` and training-hub is not installed.
        """
        if backend not in BACKENDS:
            raise ConfigError(f"backend='{backend}' is not one of {', '.join(BACKENDS)}.")
        if backend == "mini-trainer" and importlib.util.find_spec("training_hub") is None:
            raise TrainingError(
                "backend='mini-trainer' needs the package training-hub. Install it: pip install training-hub."
            )
        self.backend = backend

    def train(self, **parameters: Any) -> Any:
        """Train with the parameters of :func:`osft`; the same checks, result and errors."""
        given = {name: value for name, value in parameters.items() if value is not None}
        if self.backend == "mini-trainer":
            from training_hub import osft as train_with_training_hub

            return train_with_training_hub(**given, backend="mini-trainer")
        return _train_natively(given)


def _make_config(given: dict[str, Any]) -> TrainingConfig:
    """Return the configuration, with every default filled in."""
    known = {field.name: field for field in fields(TrainingConfig)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}."
            raise ConfigError(f"{name}={given[name]!r} is not a parameter of the native backend.{hint}")
    required = [name for name, field in known.items() if field.default is field.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise ConfigError(f"{', '.join(missing)} must be given.")
    if isinstance(patterns := given.get("target_patterns"), str):
        raise ConfigError(f"target_patterns='{patterns}' is one string. Give a list of regular expressions.")
    if isinstance(patterns, list):
        given = {**given, "target_patterns": tuple(patterns)}
    given.update({name: os.fspath(value) for name, value in given.items() if isinstance(value, os.PathLike)})
    return TrainingConfig(**given)


def _train_natively(given: dict[str, Any]) -> Any:
    import torch

    from osft.processes.environment import Surroundings
    from osft.processes.torchrun import count_local_processes, launch
    from osft.training.result import RESULT_NAME, TrainingResult

    surroundings = Surroundings.read(os.environ)
    # What one process says of the run holds for all; a warning may be of one.
    ensure_logging(logging.WARNING if surroundings.global_rank else logging.INFO)
    config = _make_config(surroundings.complete(given))
    _check_paths(config)
    if config.use_liger:
        from osft.training.liger import require_liger

        require_liger()
    # Once on each node is enough: a launcher ends the other processes.
    if not surroundings.local_rank and torch.cuda.is_available():
        from osft.planning.plan import require_memory

        require_memory(config)
    if surroundings.is_worker or (config.nnodes == 1 and count_local_processes(config) == 1):
        # Imported here: the process that only waits for others need not load what they train with.
        from osft.training.loop import train

        train(config)
    else:
        launch(config)
    directory = config.checkpoint_directory
    is_first = surroundings.global_rank == 0 if surroundings.is_worker else config.node_rank == 0
    return TrainingResult.load(directory) if is_first or (directory / RESULT_NAME).is_file() else None


def _check_paths(config: TrainingConfig) -> None:
    if not Path(config.data_path).exists():
        raise MissingPathError(f"data_path '{config.data_path}' does not exist.")
    for name in ("protect_inputs_of", "subspace_memory", "calibration"):
        path = getattr(config, name)
        if path is not None and not Path(path).exists():
            raise MissingPathError(f"{name} '{path}' does not exist.")
    if config.checkpoint_directory.exists() and not config.checkpoint_directory.is_dir():
        raise ConfigError(f"ckpt_output_dir '{config.ckpt_output_dir}' is a file. Give a folder.")
    looks_local = config.model_path.startswith((".", "/", "~")) or config.model_path.count("/") > 1
    if looks_local and not Path(config.model_path).is_dir():
        raise MissingPathError(f"model_path '{config.model_path}' does not exist, or is not a folder.")
