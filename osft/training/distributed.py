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
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from osft.config import TrainingConfig
from osft.errors import TrainingError
from osft.training.order import WorkOrder, raise_failure_of

logger = logging.getLogger(__name__)

WORKER_MODULE = "osft.training.worker"
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


def count_local_processes(config: TrainingConfig) -> int:
    """Return the processes to run on this node: what was asked for, else one a GPU, else one."""
    return config.nproc_per_node or max(1, torch.cuda.device_count())


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


def launch(config: TrainingConfig, train_data: Path) -> None:
    """Run the worker in ``nproc_per_node`` processes through torchrun and wait for them.

    Raises:
        OsftError: of the kind and with the message that the process which failed first raised.
        TrainingError: if a process ended otherwise; its own message is on stderr before.
    """
    with TemporaryDirectory(prefix="osft-") as directory:
        order = WorkOrder(config=config, train_data=train_data)
        order_file = Path(directory) / "order.json"
        order.save(order_file)
        return_code = _run_torchrun(config, order_file)
        raise_failure_of(order_file)
    if return_code != 0:
        raise TrainingError(
            f"training in {config.ckpt_output_dir} failed: a process ended with exit code {return_code}. "
            "Its own message is further up in the log."
        )


def _run_torchrun(config: TrainingConfig, order_file: Path) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count_local_processes(config)}"]
    if config.nnodes == 1 and config.rdzv_endpoint is None:
        command.append("--standalone")
    else:
        # The static rendezvous honours node_rank and lets node 0 listen on 0.0.0.0 while the others name its address.
        command += [f"--nnodes={config.nnodes}", f"--node-rank={config.node_rank}", "--rdzv-backend=static"]
        command += [f"--rdzv-endpoint={config.rdzv_endpoint}", f"--rdzv-id={config.rdzv_id or 0}"]
        host, _, port = str(config.rdzv_endpoint).rpartition(":")
        command += [f"--master-addr={host.strip('[]')}", f"--master-port={port}"]
    command += ["--module", WORKER_MODULE, str(order_file)]
    # torchrun sets one thread a process unless told; a sole process may as well use them all.
    threads = max(1, (os.cpu_count() or 1) // count_local_processes(config))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    logger.info(
        "starting %d processes on node %d of %d", count_local_processes(config), config.node_rank, config.nnodes
    )
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 our own module, no shell
