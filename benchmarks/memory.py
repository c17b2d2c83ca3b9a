"""Bytes of real tensors: the model, its gradients and the optimizer's state, and what saving takes beyond them."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.variants import BETAS, EPS, LEARNING_RATE, VARIANTS, WEIGHT_DECAY
from benchmarks.workload import Shape, Workload, build_model
from osft.subspace.attach import attach, plain_state
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank
from osft.subspace.parametrization import SubspaceWeight
from osft.subspace.targets import find_targets
from osft.training.model_files import LoadedModel, save_model
from osft.training.optimizer import AdamWithBfloat16Moments

# Weight, gradient and AdamW's two moments, float32 each. A bfloat16 copy to compute with is not counted: it need not
# be there for all weights at once.
SFT_BYTES_PER_VALUE = 16
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SECONDS_BETWEEN_SAMPLES = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class SavePeak:
    """What one save took."""

    extra_bytes: int
    """Most memory of the process beyond what it held before."""

    model_bytes: int
    """Size of the files' weights."""


def count_state_bytes(model: nn.Module, optimizer: Optimizer | None) -> int:
    """Return the bytes on the model's device of weights, buffers, gradients and the optimizer's state.

    Storage that several tensors share counts once. Gradients are counted also when they have been freed: a step has
    them.
    """
    device = next(model.parameters()).device
    tensors = [tensor for tensor in _tensors(model, optimizer) if tensor.device == device]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(storages.values()) + sum(parameter.numel() * parameter.element_size() for parameter in trained)


def _tensors(model: nn.Module, optimizer: Optimizer | None) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for state in optimizer.state.values() if optimizer else ():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def count_osft_bytes(shape: Shape, unfreeze_rank_ratio: float) -> dict[bool, int]:
    """Return the bytes on a GPU of OSFT of ``shape`` after a first step: bfloat16 weights, float32 cores.

    The engine's own code runs on the device "meta": tensors with shape and dtype, but without memory, so an 8B model
    is counted in seconds on any machine.

    Returns:
        Bytes by ``save_memory``.
    """

    def protect(_: str, weight: Tensor) -> ProtectedSubspace:
        rows, columns = weight.shape
        rank = frozen_rank(rows, columns, unfreeze_rank_ratio)
        return ProtectedSubspace(left=weight.new_empty(rows, rank), right=weight.new_empty(columns, rank))

    model = build_model(shape, "meta", torch.bfloat16)
    attach(model, find_targets(model), protect)
    return {
        False: count_state_bytes(model, _step(model, AdamW)),
        True: count_state_bytes(model, _step(model, AdamWithBfloat16Moments)) - _count_offloaded_bytes(model),
    }


def _step(model: nn.Module, make: type[Optimizer]) -> Optimizer:
    """Return an optimizer that has made its moments."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    arguments: dict[str, Any] = {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    optimizer = make(parameters, **arguments)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def _count_offloaded_bytes(model: nn.Module) -> int:
    """Return the bytes of what ``attach(offload=True)`` keeps in the host's memory, which "meta" cannot stand for."""
    weights = [module for module in model.modules() if isinstance(module, SubspaceWeight)]
    bases = [side.basis for weight in weights for side in (weight.left, weight.right) if not side.is_free_basis]
    return sum(tensor.untyped_storage().nbytes() for tensor in (*bases, *(weight.base for weight in weights)))


def count_sft_bytes(shape: Shape) -> int:
    """Return the bytes of plain fine-tuning of all parameters of ``shape`` with AdamW and float32 weights."""
    return SFT_BYTES_PER_VALUE * sum(p.numel() for p in build_model(shape, "meta", torch.float32).parameters())


def prepare_saves(workload: Workload) -> Callable[[int], SavePeak]:
    """Return what saves a trained model; for a :class:`benchmarks.worker.Worker`."""
    return SavingRun(workload).save


class SavingRun:
    """A trained model that is saved again and again."""

    def __init__(self, workload: Workload) -> None:
        """Attach subspaces to a model of the workload's shape."""
        torch.set_num_threads(workload.threads)
        model = build_model(workload.shape, workload.device, torch.float32)
        self._model = VARIANTS["osft"].prepare(model, workload.unfreeze_rank_ratio).model

    def save(self, amount: int) -> SavePeak:
        """Save the model ``amount`` times and return the largest peak."""
        peaks = [self._save_once() for _ in range(amount)]
        return max(peaks, key=lambda peak: peak.extra_bytes)

    def _save_once(self) -> SavePeak:
        dtypes = {name: tensor.dtype for name, tensor in plain_state(self._model).items()}
        loaded = LoadedModel(model=self._model, stored_dtypes=dtypes)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "saved"
            with PeakMemory() as memory:
                save_model(loaded, folder, target)
            stored = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        return SavePeak(extra_bytes=memory.extra_bytes, model_bytes=stored)


class PeakMemory:
    """The most memory that this process holds during a ``with`` block, sampled every millisecond; Linux only.

    The system's own high-water mark is of the whole life of a process and cannot be reset in every container.
    """

    def __init__(self) -> None:
        self.extra_bytes = 0
        """Most bytes beyond those at the start of the block."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Start to watch."""
        self._start_bytes = _resident_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            self.extra_bytes = max(self.extra_bytes, _resident_bytes() - self._start_bytes)


def _resident_bytes() -> int:
    """Return what this process holds of its own; the second field of statm minus shared pages of files."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(shared)) * PAGE_BYTES
