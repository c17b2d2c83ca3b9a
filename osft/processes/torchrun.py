"""Starting the processes of a run on this node through torchrun, and waiting for them."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from osft.config import TrainingConfig
from osft.errors import TrainingError
from osft.processes.order import WorkOrder, raise_failure_of

logger = logging.getLogger(__name__)

WORKER_MODULE = "osft.processes.worker"


def count_local_processes(config: TrainingConfig) -> int:
    """Return the processes to run on this node: what was asked for, else one a GPU, else one."""
    return config.nproc_per_node or max(1, torch.cuda.device_count())


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
