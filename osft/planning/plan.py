"""Whether a run fits its GPUs, from the model's configuration alone, and what to change if it does not.

The numbers come from :mod:`osft.planning.simulation`, of one of several processes from
:mod:`osft.planning.spread_run`. Left out, and covered by :data:`RESERVED_GIB`: what CUDA, its libraries' work space and
the gaps of PyTorch's allocator take. Liger's kernels take less than what is counted. Every weight is planned with its
own leading directions protected at one ratio: what ``protect_inputs_of`` and adaptive ranks take beyond that is not in
the numbers.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig

from osft.config import MAX_BETA_IN_BFLOAT16, TrainingConfig
from osft.errors import ConfigError, MissingPathError, TrainingError, one_line
from osft.planning.decomposition_time import estimate_seconds
from osft.planning.simulation import Simulation, Traffic, simulate
from osft.planning.spread_run import simulate_share
from osft.processes.torchrun import count_local_processes
from osft.training.model_files import read_dtypes

logger = logging.getLogger(__name__)

BYTES_PER_GIB = 1 << 30
# The context of CUDA and its libraries takes 0.5 to 0.7, gaps in the allocator the rest. An estimate.
RESERVED_GIB = 1.0
# What nvidia-smi reports as total, which is less than the name says.
CARDS_GIB = {
    "L4": 22.5, "A10G": 22.5, "L40S": 45.0, "A100-40": 40.0, "A100-80": 80.0, "H100": 79.6, "H200": 140.4,
}  # fmt: skip
NOT_READ = "not read"
# Fewer tokens than this leave a GPU idle.
MIN_USEFUL_TOKENS = 512
# How many times as many GPUs are tried where a run does not fit.
MORE_GPUS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What one process of a run takes."""

    on_gpu: bool
    world_size: int
    """Processes of the run, each with a GPU of its own if there are any."""

    parts_gib: Mapping[str, float]
    """Memory on the device by part, at the moment that takes most."""

    peaks_gib: Mapping[str, float]
    """The most that each phase takes."""

    host_gib: float
    """What lies in the host's memory besides, for each process; with ``remember`` at most."""

    trained_values: int
    """Values that AdamW moves."""

    capacity_gib: float | None
    """What the card has; ``None`` if none was named and none is at hand."""

    memory_gib: float = 0.0
    """What the subspace memory that the run leaves takes at most on disk; 0 if it leaves none."""

    traffic: Traffic | None = None
    """What each of several processes receives; ``None`` of one alone."""

    decomposition_seconds: float | None = None
    """About how long the decomposition takes on this machine; ``None`` if it was not asked for."""

    mend: str = ""
    """What to change where it does not fit."""

    @property
    def total_gib(self) -> float:
        """The largest of :attr:`peaks_gib`."""
        return max(self.peaks_gib.values())

    @property
    def peak_phase(self) -> str:
        """The phase that takes most."""
        return max(self.peaks_gib, key=lambda phase: self.peaks_gib[phase])

    @property
    def fits(self) -> bool | None:
        """Whether the card holds it, :data:`RESERVED_GIB` put aside; ``None`` without a card."""
        return None if self.capacity_gib is None else self.total_gib + RESERVED_GIB <= self.capacity_gib

    @property
    def verdict(self) -> str:
        """The plan in a sentence."""
        count = f"of {self.world_size} " if self.world_size > 1 else ""
        kind = "GPU" if self.on_gpu else "CPU process"
        needed = f"{self.total_gib:.1f} GiB on each {f'{count}{kind}s' if count else kind}"
        if self.fits is None:
            return f"Needs {needed}."
        card = f"the card's {self.capacity_gib:.1f} GiB (of which {RESERVED_GIB:.1f} for CUDA itself)"
        if self.fits:
            return f"Fits: needs {needed}, within {card}."
        return f"Needs {needed}, more than {card}. {self.mend}"


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
    simulation = _simulate(model_config, config, world_size, on_gpu=on_gpu)
    plan = _as_plan(simulation, world_size, on_gpu=on_gpu, capacity_gib=capacity_gib)
    if plan.fits is False:
        plan = replace(plan, mend=_find_mend(model_config, config, plan))
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
    return MemoryPlan(
        on_gpu=on_gpu,
        world_size=world_size,
        parts_gib={part: size / BYTES_PER_GIB for part, size in parts.items() if size > 0},
        peaks_gib={phase: size / BYTES_PER_GIB for phase, size in totals.items()},
        host_gib=simulation.host_bytes / BYTES_PER_GIB,
        trained_values=simulation.trained_values,
        capacity_gib=capacity_gib,
        memory_gib=simulation.memory_bytes / BYTES_PER_GIB,
        traffic=simulation.traffic,
    )


def _find_mend(model_config: PretrainedConfig, config: TrainingConfig, plan: MemoryPlan) -> str:
    """Say which change makes it fit, the one that costs least first, and how many GPUs would without a change."""

    def plan_anew(config: TrainingConfig, world_size: int) -> MemoryPlan:
        simulation = _simulate(model_config, config, world_size, on_gpu=plan.on_gpu)
        return _as_plan(simulation, world_size, on_gpu=plan.on_gpu, capacity_gib=plan.capacity_gib)

    mends = []
    for changed in _smaller_runs(config):
        smaller = plan_anew(changed, plan.world_size)
        if smaller.fits:
            mends.append(f"With {_describe_changes(config, changed)} it needs {smaller.total_gib:.1f} GiB.")
            break
    for factor in MORE_GPUS if config.parametrization == "linear" else ():
        spread = plan_anew(config, factor * plan.world_size)
        if spread.fits:
            mends.append(f"On {spread.world_size} GPUs it needs {spread.total_gib:.1f} GiB on each.")
            break
    return " ".join(mends) or (
        f"Neither save_memory=True, nor fewer tokens, nor a smaller ratio, nor {MORE_GPUS[-1]} times as many GPUs is "
        "enough: take a larger card or a smaller model."
    )


def _smaller_runs(config: TrainingConfig) -> Iterator[TrainingConfig]:
    may_save = config.parametrization == "linear" and max(config.beta1, config.beta2) <= MAX_BETA_IN_BFLOAT16
    if may_save and not config.save_memory:
        config = replace(config, save_memory=True)
        yield config
    for _ in range(2):
        tokens = config.max_tokens_per_gpu // 2
        if tokens >= max(MIN_USEFUL_TOKENS, config.block_size or 0):
            # A row must fit one micro-batch.
            config = replace(config, max_tokens_per_gpu=tokens, max_seq_len=min(tokens, config.max_seq_len))
            yield config
    yield replace(config, unfreeze_rank_ratio=config.unfreeze_rank_ratio / 2)
    if config.remember:
        # Last: the next run of the chain then writes over what this one learns.
        yield replace(config, remember=False, calibration=None)


def _describe_changes(config: TrainingConfig, changed: TrainingConfig) -> str:
    names = ("save_memory", "max_tokens_per_gpu", "max_seq_len", "unfreeze_rank_ratio", "remember")
    new = {name: getattr(changed, name) for name in names if getattr(changed, name) != getattr(config, name)}
    return ", ".join(f"{name}={value}" for name, value in new.items())
