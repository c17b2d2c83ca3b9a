"""One training step on tensors without values: the engine's own code, from the model's configuration alone.

A step is taken as it is in the middle of a run: gradients of earlier micro-batches and AdamW's moments are there.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from osft.config import TrainingConfig
from osft.data.samples import Sample
from osft.planning.remembering import Remembering
from osft.planning.tracking import AllocationTracker, AssumedValues, FusedAttention
from osft.subspace.attach import attach, merge, project_gradients, trained_weights
from osft.subspace.decomposition import ProtectedSubspace, protect_leading_directions
from osft.subspace.inputs import input_places
from osft.subspace.targets import find_targets
from osft.training import attention as packed_attention
from osft.training.batches import MicroBatch, Packing, collate
from osft.training.loop import MAX_GRADIENT_NORM
from osft.training.loss import find_logits, make_probe, summed_loss
from osft.training.optimizer import MasterParameters, make_optimizer

PLANNED_ATTENTION = "osft_planned"

WEIGHTS = "frozen and base weights"
MERGED = "merged weights"
BASES = "bases of what may move"
TRAINED = "trained values"
GRADIENTS = "gradients"
MOMENTS = "AdamW's moments"
ACTIVATIONS = "activations"
LOGITS = "logits"
TEMPORARIES = "temporaries"
COVARIANCES = "covariances of inputs"
GATHERED = "gathered from all processes"
PARTS = (WEIGHTS, MERGED, BASES, TRAINED, GRADIENTS, MOMENTS, ACTIVATIONS, LOGITS, TEMPORARIES, COVARIANCES, GATHERED)

LOADING = "loading"
DECOMPOSITION = "decomposition"
MICRO_BATCH = "forward and backward"
OPTIMIZER = "optimizer and merge"
REMEMBERING = "measuring the memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What one of several processes receives from the others, in bytes; it sends as much."""

    gathered_bytes: int
    """Weights, of one micro-batch: each block forward and backward, the rest once."""

    reduced_bytes: int
    """Gradients, of one micro-batch."""

    bytes_per_step: int
    """What the end of a step takes besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """What a run takes, in bytes and values."""

    peaks: Mapping[str, Mapping[str, int]]
    """Bytes on the device by part, at the peak of each phase."""

    host_bytes: int
    """What lies in the host's memory besides: with ``save_memory`` on a GPU; of several processes, its own
    decompositions before they are handed out; with ``remember`` at most as much as memories can have."""

    remembering: Remembering | None
    """How the memory is measured that the run leaves; ``None`` if it leaves none."""

    trained_values: int
    """Values that AdamW moves."""

    decomposed: tuple[tuple[int, int], ...]
    """``(rows, columns)`` of every matrix that this process decomposes."""

    traffic: Traffic | None = None
    """``None`` of a process alone."""


def simulate(model_config: PretrainedConfig, config: TrainingConfig, *, on_gpu: bool) -> Simulation:
    """Load, decompose and take a step.

    Args:
        model_config: of a causal language model.
        config: the run; its data are not read, and a micro-batch is as large as allowed.
        on_gpu: as on a GPU: bfloat16 for a model stored so, activation checkpointing, and ``save_memory`` moves what
            it can to the host.

    Raises:
        ConfigError: if a target pattern matches nothing.
    """
    tracker = AllocationTracker()
    decomposed: list[tuple[int, int]] = []
    with AssumedValues(), tracker:
        with tracker.phase(LOADING, WEIGHTS), torch.device("meta"):
            model = make_model(model_config, on_gpu=on_gpu)
        remembering = plan_to_remember(model, config, on_gpu=on_gpu)
        with tracker.phase(DECOMPOSITION, TEMPORARIES):
            _attach(model, config, decomposed, on_gpu=on_gpu)
        _assign_parts(model, tracker)
        with tracker.phase(OPTIMIZER, TEMPORARIES):
            masters = MasterParameters(p for p in model.parameters() if p.requires_grad)
            tracker.assign(TRAINED, masters.parameters)
            optimizer = make_optimizer(masters.parameters, config)
            fill_gradients(masters.parameters, tracker)
            optimizer.step()
            tracker.assign(MOMENTS, state_tensors(optimizer))
        run_micro_batch(model, config, tracker, nullcontext(), on_gpu=on_gpu)
        with tracker.phase(OPTIMIZER, TEMPORARIES):
            project_gradients(model)
            tracker.assign(GRADIENTS, (p.grad for p in masters.parameters if p.grad is not None))
            move_weights(masters.parameters, optimizer)
            masters.write_back()
            merge(model)
        if remembering:
            optimizer.state.clear()
            with tracker.phase(REMEMBERING, TEMPORARIES):
                remembering.measure(model, tracker, COVARIANCES, nullcontext())
    offloaded_bytes = sum(buffer.nbytes for _, buffer in model.named_buffers() if not buffer.is_meta)
    return Simulation(
        peaks=tracker.peaks,
        host_bytes=offloaded_bytes + (remembering.host_bytes if remembering else 0),
        remembering=remembering,
        trained_values=sum(parameter.numel() for parameter in masters.parameters),
        decomposed=tuple(decomposed),
    )


def make_model(model_config: PretrainedConfig, *, on_gpu: bool) -> PreTrainedModel:
    """Return the model as it is trained, on the default device."""
    stored_in_bfloat16 = getattr(model_config, "dtype", None) == torch.bfloat16
    dtype = torch.bfloat16 if on_gpu and stored_in_bfloat16 else torch.float32
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    if on_gpu and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def plan_to_remember(
    model: PreTrainedModel, config: TrainingConfig, world_size: int = 1, *, on_gpu: bool
) -> Remembering | None:
    """Return how the memory will be measured, before anything is attached; ``None`` if the run leaves none."""
    if not config.remember:
        return None
    places = input_places(model, find_targets(model, config.target_patterns))
    return Remembering(model, places, config, world_size, on_gpu=on_gpu)


def _attach(model: PreTrainedModel, config: TrainingConfig, decomposed: list[tuple[int, int]], *, on_gpu: bool) -> None:
    def protect(_: str, weight: Tensor) -> ProtectedSubspace:
        rows, columns = weight.shape
        decomposed.append((rows, columns))
        return protect_leading_directions(weight, config.unfreeze_rank_ratio)

    attach(
        model,
        find_targets(model, config.target_patterns),
        protect,
        factored=config.parametrization == "factored",
        train_other_parameters=config.train_other_parameters,
        offload=config.save_memory and on_gpu,
    )


def _assign_parts(model: nn.Module, tracker: AllocationTracker) -> None:
    """Tell the tracker what each lasting tensor is for; the last one to claim a shared storage has it."""
    for _, weight in trained_weights(model):
        tracker.assign(BASES, (buffer for name, buffer in weight.named_buffers() if name not in ("base", "merged")))
        tracker.assign(MERGED, [weight.merged])
        tracker.assign(WEIGHTS, (buffer for name, buffer in weight.named_buffers() if name == "base"))
    tracker.assign(TRAINED, (parameter for parameter in model.parameters() if parameter.requires_grad))


def fill_gradients(parameters: list[nn.Parameter], tracker: AllocationTracker) -> None:
    """Give ``parameters`` the gradients of earlier micro-batches."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        tracker.assign(GRADIENTS, [parameter.grad])


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return what ``optimizer`` remembers of its parameters."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def run_micro_batch(
    model: PreTrainedModel,
    config: TrainingConfig,
    tracker: AllocationTracker,
    with_weights: AbstractContextManager[None],
    *,
    on_gpu: bool,
) -> None:
    """Take the last micro-batch of a step, forward and backward ``with_weights``."""
    tracker.parts_by_width[model.config.get_text_config().vocab_size] = LOGITS
    with tracker.phase(MICRO_BATCH, ACTIVATIONS):
        batch, logits = _prepare_forward(model, config, on_gpu=on_gpu)
        with with_weights:
            loss = summed_loss(model, batch, logits)
            with tracker.phase(MICRO_BATCH, TEMPORARIES):
                loss.backward()


def move_weights(parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
    """Move ``parameters`` and let go of their gradients."""
    nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _prepare_forward(model: PreTrainedModel, config: TrainingConfig, *, on_gpu: bool) -> tuple[MicroBatch, Any]:
    """Return the largest micro-batch that the run may have, and how the model's logits are made."""
    length = min(config.max_seq_len, config.max_tokens_per_gpu)
    samples = [_sample(length) for _ in range(config.max_tokens_per_gpu // length)]
    if rest := config.max_tokens_per_gpu % length:
        samples.append(_sample(rest))
    logits = find_logits(model, collate(make_probe(samples), packed=False).to(model.device))
    packed = _is_packed(model, length, on_gpu=on_gpu)
    if not packed:
        samples = samples[: config.max_tokens_per_gpu // length]
    on_host = collate(samples, packed=packed)
    batch = on_host.to(model.device)
    return _with_bounds_on_host(batch, on_host), logits


def _is_packed(model: PreTrainedModel, longest_tokens: int, *, on_gpu: bool) -> bool:
    """Return whether a run would pack its micro-batches; make PyTorch's attention of ``model`` countable."""
    packed = packed_attention.reason_to_pad(model, longest_tokens) is None
    if model.config.get_text_config()._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(PLANNED_ATTENTION, partial(_attend, on_gpu=on_gpu))
        ALL_MASK_ATTENTION_FUNCTIONS.register(PLANNED_ATTENTION, packed_attention.mask_of_padding)
        model.set_attn_implementation(PLANNED_ATTENTION)
    return packed


def _with_bounds_on_host(batch: MicroBatch, on_host: MicroBatch) -> MicroBatch:
    """Return ``batch`` with the samples' bounds as values, which attention reads."""
    if batch.packing is None or on_host.packing is None:
        return batch
    packing = Packing(
        position_ids=batch.packing.position_ids,
        bounds=on_host.packing.bounds,
        longest_tokens=on_host.packing.longest_tokens,
    )
    return MicroBatch(input_ids=batch.input_ids, labels=batch.labels, packing=packing)


def _sample(length: int) -> Sample:
    ids = np.zeros(length, dtype=np.int32)
    return Sample(input_ids=ids, labels=ids, row=1)


def _attend(module: nn.Module, *args: Any, on_gpu: bool, **kwargs: Any) -> Any:
    # Entered here, not around the step: no function mode reaches what checkpointing recomputes.
    with FusedAttention(with_dropout=on_gpu):
        return packed_attention.attend_within_samples(module, *args, **kwargs)
