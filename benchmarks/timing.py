"""What is timed: a training step and a decomposition, in the process that does them."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.memory import count_state_bytes
from benchmarks.variants import VARIANTS, Prepared, Variant
from benchmarks.workload import Workload, build_model, make_tokens
from osft.subspace.cache import DecompositionCache
from osft.subspace.decomposition import frozen_rank, protect_leading_directions
from osft.subspace.parametrization import SubspaceWeight
from osft.subspace.targets import find_targets, target_parameter

MAX_GRADIENT_NORM = 1.0
DECOMPOSITIONS = ("mini-trainer", "osft", "osft-cached")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One optimizer step of one variant."""

    micro_batches: int
    loss: float
    """Mean over the tokens of the step, before it is taken."""

    accumulate_seconds: float
    """All forward and backward passes."""

    update_seconds: float
    """What is done once a step: projection, clipping, optimizer, merge."""

    prepare_seconds: float
    """From the loaded model to the first step, decompositions included; once a run."""

    state_bytes: int
    """Weights, gradients and the optimizer's state on the device."""

    peak_bytes: int | None
    """Most memory that PyTorch has allocated so far on a GPU; ``None`` on a CPU."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.accumulate_seconds + self.update_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class DecompositionTime:
    """One decomposition of all weights of one block."""

    seconds: float
    computed: int
    """Weights that were decomposed, not read from the cache."""


def prepare_steps(workload: Workload, variant_name: str) -> Callable[[int], StepTime]:
    """Return what takes a step of the given number of micro-batches; for a :class:`benchmarks.worker.Worker`."""
    return TrainingRun(workload, variant_name).take_step


def prepare_decompositions(workload: Workload, method: str) -> Callable[[int], DecompositionTime]:
    """Return what decomposes by one of :data:`DECOMPOSITIONS`; for a :class:`benchmarks.worker.Worker`."""
    return DecompositionRun(workload, method).decompose


class TrainingRun:
    """A model of one variant, and its place in the data."""

    def __init__(self, workload: Workload, variant_name: str) -> None:
        """Build and prepare the model."""
        torch.set_num_threads(workload.threads)
        self._workload = workload
        variant = VARIANTS[variant_name]
        self._prepared, self._prepare_seconds = _prepare(workload, variant)
        if workload.on_gpu:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.cuda.reset_peak_memory_stats()
        self._autocast = workload.on_gpu and variant.gpu_autocast
        self._micro_batches_seen = 0

    @property
    def model(self) -> PreTrainedModel:
        """The model as the variant prepared it."""
        return self._prepared.model

    def take_step(self, micro_batches: int) -> StepTime:
        """Take one optimizer step over the next ``micro_batches``."""
        prepared, workload = self._prepared, self._workload
        batches = [make_tokens(workload, self._micro_batches_seen + index) for index in range(micro_batches)]
        self._micro_batches_seen += micro_batches
        start = _now(workload)
        losses = [self._accumulate(tokens, micro_batches) for tokens in batches]
        accumulated = _now(workload)
        self._update()
        done = _now(workload)
        return StepTime(
            micro_batches=micro_batches,
            loss=float(torch.stack(losses).sum()),
            accumulate_seconds=accumulated - start,
            update_seconds=done - accumulated,
            prepare_seconds=self._prepare_seconds,
            state_bytes=count_state_bytes(prepared.model, prepared.optimizer),
            peak_bytes=torch.cuda.max_memory_allocated() if workload.on_gpu else None,
        )

    def _accumulate(self, tokens: Tensor, micro_batches: int) -> Tensor:
        with torch.autocast(self._workload.device, torch.bfloat16, enabled=self._autocast):
            loss = self.model(input_ids=tokens, labels=tokens).loss / micro_batches
        loss.backward()
        return loss.detach()

    def _update(self) -> None:
        prepared = self._prepared
        if prepared.optimizer is None:
            return
        prepared.before_clipping()
        nn.utils.clip_grad_norm_(prepared.parameters, MAX_GRADIENT_NORM)
        prepared.optimizer.step()
        prepared.optimizer.zero_grad()
        prepared.after_step()


def _prepare(workload: Workload, variant: Variant) -> tuple[Prepared, float]:
    """Return what ``variant`` makes of a new model, and the seconds it takes.

    A function of its own, so that nothing keeps a model that the variant copied.
    """
    model = build_model(workload.shape, workload.device, variant.gpu_dtype if workload.on_gpu else torch.float32)
    start = _now(workload)
    prepared = variant.prepare(model, workload.unfreeze_rank_ratio)
    return prepared, _now(workload) - start


class DecompositionRun:
    """The weights of one block, decomposed again and again; all blocks have the same shapes."""

    def __init__(self, workload: Workload, method: str) -> None:
        """Build the weights; with ``osft-cached``, fill the cache."""
        torch.set_num_threads(workload.threads)
        self._workload = workload
        model = build_model(replace(workload.shape, num_layers=1), workload.device, torch.float32)
        self._weights = [target_parameter(model, target).detach() for target in find_targets(model)]
        self._folder = tempfile.TemporaryDirectory()
        self._decompose = self._choose(method)
        if method == "osft-cached":
            self._decompose(self._weights)

    def decompose(self, amount: int) -> DecompositionTime:
        """Decompose all weights ``amount`` times and return the mean time of one."""
        start = _now(self._workload)
        computed = [self._decompose(self._weights) for _ in range(amount)]
        return DecompositionTime(seconds=(_now(self._workload) - start) / amount, computed=max(computed))

    def _choose(self, method: str) -> Callable[[Sequence[Tensor]], int]:
        ratio = self._workload.unfreeze_rank_ratio
        if method == "mini-trainer":
            return partial(_decompose_as_mini_trainer, unfreeze_rank_ratio=ratio)
        if method == "osft":
            return partial(_decompose_as_osft, unfreeze_rank_ratio=ratio)
        return partial(_decompose_cached, unfreeze_rank_ratio=ratio, folder=Path(self._folder.name))


def _decompose_as_mini_trainer(weights: Sequence[Tensor], *, unfreeze_rank_ratio: float) -> int:
    from mini_trainer.osft_utils import create_svd_dict

    for weight in weights:
        rows, columns = weight.shape
        create_svd_dict(weight, frozen_rank(rows, columns, unfreeze_rank_ratio))
    return len(weights)


def _decompose_as_osft(weights: Sequence[Tensor], *, unfreeze_rank_ratio: float) -> int:
    for weight in weights:
        SubspaceWeight(weight, protect_leading_directions(weight, unfreeze_rank_ratio))
    return len(weights)


def _decompose_cached(weights: Sequence[Tensor], *, unfreeze_rank_ratio: float, folder: Path) -> int:
    cache = DecompositionCache(folder)
    for weight in weights:
        rows, columns = weight.shape
        rank = frozen_rank(rows, columns, unfreeze_rank_ratio)
        compute = partial(protect_leading_directions, weight, unfreeze_rank_ratio)
        SubspaceWeight(weight, cache.get_or_compute(weight, rank, compute))
    return len(weights) - cache.hits


def _now(workload: Workload) -> float:
    """Return the time in seconds, after all that was asked of the GPU is done."""
    if workload.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()
