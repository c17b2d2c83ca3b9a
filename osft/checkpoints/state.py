"""What of a running training is saved, under which names, and how it comes back.

Names are those of the model's parameters, not places in a list, so that another number of processes finds its parts:
torch.distributed.checkpoint cuts a tensor that is spread over processes anew, by the shape of the whole. Plain tensors
and DTensors are saved alike.

The trained values are taken between the optimizer's step and :func:`osft.subspace.attach.merge`, which belongs to
going on: it takes the protected part out of the values, and what is left differs in its last bits if that is done
twice. Taken before, merging gives the same bits as it gave in the run that was not interrupted.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from osft.processes.group import Processes
from osft.subspace.attach import Source, merge, trained_weights
from osft.subspace.decomposition import ProtectedSubspace
from osft.subspace.parametrization import SubspaceWeight

logger = logging.getLogger(__name__)

PARAMETERS = "parameters"
MOMENTS = "moments"
OPTIMIZER_KEY = "optimizer"
SCHEDULER_KEY = "scheduler"
RANDOM_CPU = "random_cpu"
RANDOM_GPU = "random_gpu"
# Made anew from the base model, or from what is trained.
NOT_BASES = ("base", "merged")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Everything that a step changes, beside the merged weights, which follow from it."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    """What the optimizer moves, in the order of the model's trained parameters; copies of those in less precision."""

    write_back: Callable[[], None]
    """Rounds the copies into the model's parameters."""

    optimizer: Optimizer
    scheduler: LRScheduler
    processes: Processes

    def saved(self) -> dict[str, Any]:
        """Return what to save, by name: tensors, not copied, and plain values."""
        state: dict[str, Any] = {
            OPTIMIZER_KEY: [_settings(group) for group in self.optimizer.param_groups],
            SCHEDULER_KEY: self.scheduler.state_dict(),
            f"{RANDOM_CPU}/{self.processes.global_rank}": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state[f"{RANDOM_GPU}/{self.processes.global_rank}"] = torch.cuda.get_rng_state()
        for name, parameter in self._parameters().items():
            state[f"{PARAMETERS}/{name}"] = parameter.detach()
            for kind, value in self.optimizer.state[parameter].items():
                state[f"{MOMENTS}/{kind}/{name}"] = value
        return state

    def load(self, folder: Path, *, world_size: int, group: dist.ProcessGroup | None) -> None:
        """Overwrite all of it with what ``folder`` holds; every process must call this.

        Args:
            folder: a whole checkpoint.
            world_size: how many processes wrote it.
            group: of all processes, on the CPU; ``None`` for a single one.
        """
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        parameters = self._parameters()
        state: dict[str, Any] = {f"{PARAMETERS}/{name}": parameter.detach() for name, parameter in parameters.items()}
        # Anything stands for a plain value: it is replaced.
        state |= {OPTIMIZER_KEY: None, SCHEDULER_KEY: None}
        state |= {name: torch.empty_like(torch.get_rng_state()) for name in stored if name.startswith(f"{RANDOM_CPU}/")}
        if torch.cuda.is_available():
            seed = torch.cuda.get_rng_state()
            state |= {name: torch.empty_like(seed) for name in stored if name.startswith(f"{RANDOM_GPU}/")}
        for name, entry in stored.items():
            if name.startswith(f"{MOMENTS}/"):
                parameter = parameters[name.split("/", 2)[2]]
                state[name] = _like(parameter, entry) if isinstance(entry, TensorStorageMetadata) else None
        load_tensors(state, folder, group)
        self._take_over(state)
        self._seed(state, world_size)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer moves, by the names of the model's parameters."""
        # Of a weight without a free direction there is nothing to save.
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad and p.numel())
        moved = (parameter for parameter in self.parameters if parameter.numel())
        return {name: parameter for (name, _), parameter in zip(trained, moved, strict=True)}

    @torch.no_grad()
    def _take_over(self, state: Mapping[str, Any]) -> None:
        """Put what is not loaded in place where it belongs, and bring the model up to date."""
        parameters = self._parameters()
        for name, value in state.items():
            if name.startswith(f"{MOMENTS}/"):
                _, kind, parameter_name = name.split("/", 2)
                self.optimizer.state[parameters[parameter_name]][kind] = value
        for group, settings in zip(self.optimizer.param_groups, state[OPTIMIZER_KEY], strict=True):
            group.update(settings)
        self.scheduler.load_state_dict(state[SCHEDULER_KEY])
        self.write_back()
        merge(self.model)

    def _seed(self, state: Mapping[str, Any], world_size: int) -> None:
        """Go on with this process's random numbers; with another number of processes the seed starts them anew."""
        rank = self.processes.global_rank
        if world_size != self.processes.world_size:
            logger.info(
                "the checkpoint was written by %d processes, now there are %d: random numbers start anew from the seed",
                world_size,
                self.processes.world_size,
            )
            return
        torch.set_rng_state(state[f"{RANDOM_CPU}/{rank}"])
        if f"{RANDOM_GPU}/{rank}" in state:
            torch.cuda.set_rng_state(state[f"{RANDOM_GPU}/{rank}"])


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _like(parameter: Tensor, stored: TensorStorageMetadata) -> Tensor:
    """Return memory for an entry of the optimizer: spread as its parameter is, or a count of steps."""
    dtype = stored.properties.dtype
    if stored.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    # A fused optimizer counts where its parameters are.
    return torch.empty(stored.size, dtype=dtype, device=parameter.device if parameter.is_cuda else None)


def load_tensors(state: dict[str, Any], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fill the tensors of ``state`` with those of the same names in ``folder`` and replace its other values."""
    dcp.load(
        state,
        storage_reader=FileSystemReader(folder),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=group,
        no_dist=group is None,
    )


def bases(model: nn.Module) -> dict[str, Tensor]:
    """Return what the trained values of ``model`` are coordinates in, by name; it never changes in a run."""
    return {
        f"{target}/{name}": tensor.detach()
        for target, weight in trained_weights(model)
        # Where the model is spread over processes, some of them are parameters that are not trained.
        for name, tensor in (*weight.named_buffers(), *weight.named_parameters())
        if name not in NOT_BASES and tensor.numel() > 0 and not tensor.requires_grad
    }


def protected_ranks(model: nn.Module) -> dict[str, list[int]]:
    """Return how many directions are protected on the left and on the right of every target."""
    return {target: [_rank(weight, "left"), _rank(weight, "right")] for target, weight in trained_weights(model)}


def _rank(weight: nn.Module, side: str) -> int:
    if isinstance(weight, SubspaceWeight):
        rows, columns = weight.merged.shape[-2:]
        return rows - weight.left.free_rank if side == "left" else columns - weight.right.free_rank
    return getattr(weight, side).shape[-1]


def room_for_bases(ranks: Mapping[str, tuple[int, int]]) -> Source:
    """Return what says of every weight how much is protected, without saying what: the bases are loaded later.

    Args:
        ranks: of :func:`protected_ranks`.
    """

    def reserve(name: str, weight: Tensor) -> ProtectedSubspace:
        # An expert of a stack is named by the stack and its number.
        left_rank, right_rank = ranks[name] if name in ranks else ranks[name.rpartition("[")[0]]
        rows, columns = weight.shape
        # One value seen many times: of both forms of a side only the one that is kept becomes memory.
        zero = weight.new_zeros(())
        return ProtectedSubspace(
            left=zero.expand(rows, left_rank),
            right=zero.expand(columns, right_rank),
            free_left=zero.expand(rows, rows - left_rank),
            free_right=zero.expand(columns, columns - right_rank),
        )

    return reserve
