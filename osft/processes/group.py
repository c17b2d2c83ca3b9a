"""The processes of a run: joining them, and the one sum a step needs.

Each process holds its rows of every weight and takes its share of every effective batch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from osft.errors import TrainingError
from osft.processes.environment import Surroundings

# A process that hangs is found by the watch, which can name it; a collective times out later, and cannot.
COLLECTIVE_TIMEOUT_AFTER_WATCH = timedelta(minutes=15)
# What torchrun gives the nodes to meet, too.
JOIN_TIMEOUT = timedelta(minutes=15)
DEFAULT_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Where this process stands among those of the run."""

    global_rank: int
    local_rank: int
    world_size: int
    store: dist.Store | None = None
    """What the processes tell each other outside collectives; ``None`` for a process that nobody launched."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.global_rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU on a machine without one."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def process_group(timeout: timedelta = DEFAULT_TIMEOUT) -> Iterator[Processes]:
    """Join the processes of the run for the length of the block. Every process must enter.

    A single process that nobody launched is a run of one, without a process group.

    Args:
        timeout: how long a collective waits for the others.

    Raises:
        TrainingError: if a process does not come.
    """
    local_rank = Surroundings.read(os.environ).local_rank
    if local_rank is None:
        yield Processes(global_rank=0, local_rank=0, world_size=1)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    store, global_rank, world_size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    # The store may outlive the group, so each group of these processes has keys of its own.
    number = store.add(f"osft/groups/{global_rank}", 1)
    store = dist.PrefixStore(f"osft/{number}", store)
    _wait_for_all(store, global_rank, world_size)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore("group", store),
        rank=global_rank,
        world_size=world_size,
        timeout=timeout,
    )
    try:
        yield Processes(global_rank=global_rank, local_rank=local_rank, world_size=world_size, store=store)
        # Nobody leaves before the first process has written its files.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _wait_for_all(store: dist.Store, global_rank: int, world_size: int) -> None:
    """Wait until every process is there, so that one that is not can be named."""
    keys = [f"joined/{other}" for other in range(world_size)]
    store.set(keys[global_rank], "")
    try:
        store.wait(keys, JOIN_TIMEOUT)
    except dist.DistStoreError as error:
        missing = [str(other) for other, key in enumerate(keys) if not store.check([key])]
        raise TrainingError(
            f"rank {', '.join(missing)} of {world_size} did not join within {JOIN_TIMEOUT}. Look at its log."
        ) from error


def sum_over_processes(tensor: Tensor, processes: Processes) -> None:
    """Add up ``tensor`` over all processes, in place. Every process must call this, with like shapes."""
    if processes.world_size > 1:
        dist.all_reduce(tensor)


def is_true_everywhere(condition: bool, device: torch.device) -> bool:
    """Return whether ``condition`` holds in every process of the run; every process must call this.

    Args:
        condition: of this process.
        device: of this process.
    """
    if not dist.is_initialized():
        return condition
    agreed = torch.tensor(int(condition), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)
