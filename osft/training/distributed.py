"""The processes of a run: starting them through torchrun, joining them, and the one sum a step needs.

Each process holds the whole model and takes its share of every effective batch; what is trained is small, and its
gradient is summed over the processes once a step.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from osft.config import TrainingConfig
from osft.errors import TrainingError

logger = logging.getLogger(__name__)

WORKER_MODULE = "osft.training.worker"


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


def count_local_processes(config: TrainingConfig) -> int:
    """Return the processes to run on this node: what was asked for, else one a GPU, else one."""
    return config.nproc_per_node or max(1, torch.cuda.device_count())


def is_launched() -> bool:
    """Return whether torchrun, or what sets the same environment, started this process."""
    return dist.is_torchelastic_launched() or "LOCAL_RANK" in os.environ


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
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(global_rank=dist.get_rank(), local_rank=local_rank, world_size=dist.get_world_size())
        # Nobody leaves before the first process has written its files.
        dist.barrier()
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def sum_over_processes(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Add up each tensor over all processes, in place. Every process must call this, with like shapes."""
    if processes.world_size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def launch(config: TrainingConfig, config_file: Path) -> None:
    """Run the worker in ``nproc_per_node`` processes through torchrun and wait for them.

    Raises:
        TrainingError: if a process fails; its own message is on stderr before.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count_local_processes(config)}"]
    if config.nnodes == 1 and config.rdzv_endpoint is None:
        command.append("--standalone")
    else:
        # The static rendezvous honours node_rank and lets node 0 listen on 0.0.0.0 while the others name its address.
        command += [f"--nnodes={config.nnodes}", f"--node-rank={config.node_rank}", "--rdzv-backend=static"]
        command += [f"--rdzv-endpoint={config.rdzv_endpoint}", f"--rdzv-id={config.rdzv_id or 0}"]
        host, _, port = str(config.rdzv_endpoint).rpartition(":")
        command += [f"--master-addr={host.strip('[]')}", f"--master-port={port}"]
    command += ["--module", WORKER_MODULE, str(config_file)]
    # torchrun sets one thread a process unless told; a sole process may as well use them all.
    threads = max(1, (os.cpu_count() or 1) // count_local_processes(config))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    logger.info(
        "starting %d processes on node %d of %d", count_local_processes(config), config.node_rank, config.nnodes
    )
    completed = subprocess.run(command, env=environment, check=False)  # noqa: S603 our own module, no shell
    if completed.returncode != 0:
        raise TrainingError(
            f"training in {config.ckpt_output_dir} failed: a process ended with exit code {completed.returncode}. "
            "Its own message is further up in the log."
        )
