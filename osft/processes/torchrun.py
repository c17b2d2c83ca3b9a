"""Starting the processes of a run on this node, and waiting for them."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from osft.config import TrainingConfig
from osft.errors import PreemptedError, TrainingError
from osft.processes.order import WorkOrder, raise_failure_of

logger = logging.getLogger(__name__)

AGENT_MODULE = "osft.processes.agent"
# After an interrupt, for the agent to end its workers, which it gives 30 s.
INTERRUPT_SECONDS = 45


def count_local_processes(config: TrainingConfig) -> int:
    """Return the processes to run on this node: what was asked for, else one a GPU, else one."""
    if config.nproc_per_node:
        return config.nproc_per_node
    # Seconds of importing, which a pod whose job says how many processes it runs can do without.
    import torch

    return max(1, torch.cuda.device_count())


def launch(config: TrainingConfig) -> None:
    """Train in ``nproc_per_node`` processes, started by torch's elastic agent, and wait for them.

    The first SIGTERM is passed on to them.

    Raises:
        OsftError: of the kind and with the message that the process which failed first raised.
        PreemptedError: if SIGTERM ended them.
        TrainingError: if a process ended otherwise; the message names it and its exit code.
    """
    with TemporaryDirectory(prefix="osft-") as directory:
        order_file = Path(directory) / "order.json"
        WorkOrder(config=replace(config, nproc_per_node=count_local_processes(config))).save(order_file)
        return_code, was_told_to = _run_agent(config, order_file)
        raise_failure_of(order_file)
    if return_code == -signal.SIGTERM or (return_code != 0 and was_told_to):
        raise PreemptedError(
            f"training in {config.ckpt_output_dir} was stopped by SIGTERM; the same call goes on from what is there."
        )
    if return_code != 0:
        raise TrainingError(
            f"training in {config.ckpt_output_dir} failed: the process that watches over it ended with exit code "
            f"{return_code}. Its own message is further up in the log."
        )


def _run_agent(config: TrainingConfig, order_file: Path) -> tuple[int, bool]:
    """Return the agent's exit code, and whether SIGTERM was passed on to it."""
    count = count_local_processes(config)
    # The agent sets one thread a process unless told; a sole process may as well use them all.
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    logger.info("starting %d processes on node %d of %d", count, config.node_rank, config.nnodes)
    command = [sys.executable, "-m", AGENT_MODULE, str(order_file)]
    # The agent reads its standard input to its end, which comes with that of this process, however it ends.
    with (
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as agent,  # noqa: S603 our own module, no shell
        _passing_on_sigterm(agent) as passed_on,
    ):
        try:
            return agent.wait(), passed_on.is_set()
        except BaseException:
            # In a terminal the agent got the interrupt as well; it ends the workers either way.
            agent.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                agent.wait(INTERRUPT_SECONDS)
            raise
        finally:
            agent.kill()


@contextmanager
def _passing_on_sigterm(agent: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Send ``agent`` the first SIGTERM that this process gets, and yield what tells of it.

    A thread other than the main one may not, and does nothing.
    """
    passed_on = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield passed_on
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        # Once: before it has workers the agent ends by any one, and then by the first.
        if not passed_on.is_set():
            passed_on.set()
            agent.send_signal(number)

    earlier = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield passed_on
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)
