"""Whether a run fits its GPUs, from the model's configuration alone, and what to change if it does not.

The numbers come from :mod:`osft.planning.simulation`, of one of several processes from
:mod:`osft.planning.spread_run`. Liger's kernels take less than what is counted. Every weight is planned with its own
leading directions protected at one ratio: what ``protect_inputs_of`` and adaptive ranks take beyond that is not in the
numbers.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig

from osft.config import TrainingConfig
from osft.errors import ConfigError, MissingPathError, TrainingError, one_line
from osft.planning.decomposition_time import estimate_seconds
from osft.planning.memory_plan import BYTES_PER_GIB, RESERVED_GIB, MemoryPlan
from osft.planning.mending import find_mend
from osft.planning.simulation import Simulation, simulate
from osft.planning.spread_run import simulate_share
from osft.processes.torchrun import count_local_processes
from osft.training.model_files import read_dtypes

logger = logging.getLogger(__name__)

# What nvidia-smi reports as total, which is less than the name says.
CARDS_GIB = {
    "L4": 22.5, "A10G": 22.5, "L40S": 45.0, "A100-40": 40.0, "A100-80": 80.0, "H100": 79.6, "H200": 140.4,
}  # fmt: skip
NOT_READ = "not read"


def config_to_plan(
    model_path: str,
    unfreeze_rank_ratio: float,
    max_tokens_per_gpu: int,
    max_seq_len: int | None = None,
    **options: Any,
) -> TrainingConfig:
    """Return a run's configuration without what its memory does not depend on.

    Args:
        model_path: folder, ``config.json`` or Hugging Face id.
        unfreeze_rank_ratio: as in :class:`osft.config.TrainingConfig`.
        max_tokens_per_gpu: the same.
        max_seq_len: ``None`` for ``max_tokens_per_gpu``.
        options: further fields, such as ``save_memory``.

    Raises:
        ConfigError: if a value is not allowed.
    """
    return TrainingConfig(
        model_path=model_path,
        unfreeze_rank_ratio=unfreeze_rank_ratio,
        max_tokens_per_gpu=max_tokens_per_gpu,
        max_seq_len=max_seq_len or max_tokens_per_gpu,
        data_path=NOT_READ,
        ckpt_output_dir=NOT_READ,
        effective_batch_size=1,
        learning_rate=1.0,
        **options,
    )


def plan_training(
    config: TrainingConfig,
    *,
    on_gpu: bool,
    world_size: int = 1,
    capacity_gib: float | None = None,
    with_time: bool = False,
) -> MemoryPlan:
    """Predict what each process of a run takes; its data and the model's weights are not read.

    Args:
        config: the run. ``model_path`` may also be a ``config.json``.
        world_size: processes of the run, on all nodes.
        on_gpu: plan for a GPU, otherwise for a CPU.
        capacity_gib: what the card has.
        with_time: also estimate the time of the decomposition, with a small one on this machine (a second or two).

    Raises:
        ConfigError: if a target pattern matches nothing, or the configuration is not of a causal language model.
        MissingPathError: if there is no configuration.
        TrainingError: if the code of this family of models cannot run without values.
    """
    model_config = load_model_config(config.model_path)

    def plan_anew(config: TrainingConfig, world_size: int) -> MemoryPlan:
        simulation = _simulate(model_config, config, world_size, on_gpu=on_gpu)
        return _as_plan(simulation, world_size, on_gpu=on_gpu, capacity_gib=capacity_gib)

    simulation = _simulate(model_config, config, world_size, on_gpu=on_gpu)
    plan = _as_plan(simulation, world_size, on_gpu=on_gpu, capacity_gib=capacity_gib)
    if plan.fits is False:
        plan = replace(plan, mend=find_mend(config, plan, plan_anew))
    if with_time:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seconds = estimate_seconds(simulation.decomposed, config.unfreeze_rank_ratio, device)
        plan = replace(plan, decomposition_seconds=seconds)
    return plan


def require_memory(config: TrainingConfig) -> None:
    """Refuse a run that cannot fit the GPUs at hand; without a GPU, or where nothing can be said, do nothing.

    The other nodes are taken to be as this one.

    Raises:
        ConfigError: with the numbers and what to change.
    """
    processes_here = count_local_processes(config)
    capacity_gib = memory_at_hand_gib(processes_here)
    if capacity_gib is None:
        return
    # No micro-batch is larger than the effective batch.
    most_tokens = min(config.max_tokens_per_gpu, config.effective_batch_size * config.max_seq_len)
    try:
        plan = plan_training(
            replace(config, max_tokens_per_gpu=most_tokens),
            on_gpu=True,
            world_size=config.nnodes * processes_here,
            capacity_gib=capacity_gib,
        )
    except TrainingError as error:
        logger.warning("%s", error)
        return
    if not plan.fits:
        raise ConfigError(f"model_path='{config.model_path}' does not fit. {plan.verdict}")


def memory_at_hand_gib(num_gpus: int | None = None) -> float | None:
    """Return the memory of the smallest of the first ``num_gpus`` GPUs, or of all; ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    count = min(num_gpus or torch.cuda.device_count(), torch.cuda.device_count())
    cards = (torch.cuda.get_device_properties(index) for index in range(count))
    return float(min(card.total_memory for card in cards) / BYTES_PER_GIB)


def read_gpu_memory(text: str) -> float:
    """Return the GiB that ``"L40S"``, ``"45"``, ``"45GiB"`` or ``"48GB"`` stands for.

    Raises:
        ConfigError: if it is neither a known card nor a size.
    """
    known = {name.lower(): size for name, size in CARDS_GIB.items()}
    if text.lower() in known:
        return known[text.lower()]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|GiB|GB)", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f"gpu_memory='{text}' is neither a size, e.g. 45 or 45GiB, nor one of {', '.join(CARDS_GIB)}."
        )
    return float(match[1]) * (1e9 / BYTES_PER_GIB if match[2].lower() == "gb" else 1)


def load_model_config(model_path: str) -> PretrainedConfig:
    """Return the configuration of a local folder, a ``config.json`` or a model of the Hub, with the stored dtype.

    No weights are read, of safetensors files the headers alone.

    Raises:
        ConfigError: if it is of no model that transformers knows.
        MissingPathError: if there is none.
    """
    path = Path(model_path)
    try:
        config = AutoConfig.from_pretrained(path.parent if path.name == "config.json" else model_path)
    except (OSError, HFValidationError) as error:
        raise MissingPathError(
            f"model '{model_path}' is neither a folder with a config.json, nor such a file, nor a reachable Hugging "
            f"Face id: {one_line(error)}."
        ) from error
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model '{model_path}': its config.json is of no known model: {one_line(error)}.") from error
    if any(path.glob("*.safetensors")):
        # What the loading goes by: a configuration may name another dtype, or none.
        config.dtype = torch.bfloat16 if set(read_dtypes(path).values()) == {torch.bfloat16} else torch.float32
    return config


def _simulate(model_config: PretrainedConfig, config: TrainingConfig, world_size: int, *, on_gpu: bool) -> Simulation:
    if type(model_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"model '{config.model_path}' is not a causal language model: transformers has none for "
            f"{type(model_config).__name__}."
        )
    try:
        if world_size == 1:
            return simulate(model_config, config, on_gpu=on_gpu)
        return simulate_share(model_config, config, world_size, on_gpu=on_gpu)
    except ConfigError:
        raise
    # Everything: it is the code of many families, run without values. A plan that fails must not end a run.
    except Exception as error:
        raise TrainingError(
            f"model '{config.model_path}': its memory cannot be planned ({one_line(error)}). Try a short run."
        ) from error


def _as_plan(simulation: Simulation, world_size: int, *, on_gpu: bool, capacity_gib: float | None) -> MemoryPlan:
    totals = {phase: sum(parts.values()) for phase, parts in simulation.peaks.items()}
    parts = simulation.peaks[max(totals, key=lambda phase: totals[phase])]
    remembering = simulation.remembering
    passes = None
    if remembering and capacity_gib is not None:
        passes = remembering.count_passes(int((capacity_gib - RESERVED_GIB) * BYTES_PER_GIB))
    return MemoryPlan(
        on_gpu=on_gpu,
        world_size=world_size,
        parts_gib={part: size / BYTES_PER_GIB for part, size in parts.items() if size > 0},
        peaks_gib={phase: size / BYTES_PER_GIB for phase, size in totals.items()},
        host_gib=simulation.host_bytes / BYTES_PER_GIB,
        trained_values=simulation.trained_values,
        capacity_gib=capacity_gib,
        memory_gib=remembering.memory_bytes / BYTES_PER_GIB if remembering else 0.0,
        memory_passes=passes,
        traffic=simulation.traffic,
    )
