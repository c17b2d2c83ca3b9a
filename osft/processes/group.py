"""The processes of a run: joining them, and the one sum a step needs.

Each process holds the whole model and takes its share of every effective batch; what is trained is small, and its
gradient is summed over the processes once a step.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from osft.config import TrainingConfig

# While the first process writes a large model to a slow volume the others wait for it in a collective.
COLLECTIVE_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Where this process stands among those of the run."""

    global_rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.global_rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU on a machine without one."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def is_launched() -> bool:
    """Return whether torchrun, or what sets the same environment, started this process."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def is_first_process(config: TrainingConfig) -> bool:
    """Return whether this is the process, or the node, that the first process of the run belongs to."""
    return os.environ["RANK"] == "0" if is_launched() else config.node_rank == 0


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes of the run for the length of the block. Every process must enter.

    A single process that nobody launched is a run of one, without a process group.
    """
    if not is_launched():
        yield Processes(global_rank=0, local_rank=0, world_size=1)
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Processes(global_rank=dist.get_rank(), local_rank=local_rank, world_size=dist.get_world_size())
        # Nobody leaves before the first process has written its files.
        dist.barrier()
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Overwrite each tensor with the first process's. Every process must call this, with like shapes."""
    if processes.world_size > 1:
        for tensor in tensors:
            # NCCL knows no host memory.
            shared = tensor.to(processes.device)
            dist.broadcast(shared, src=0)
            if shared is not tensor:
                tensor.copy_(shared)


@torch.no_grad()
def sum_over_processes(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Add up each tensor over all processes, in place. Every process must call this, with like shapes."""
    if processes.world_size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
