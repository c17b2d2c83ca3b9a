"""The process that starts the workers of one node and watches them: torchrun, for an order of ours.

python -m osft.processes.agent ORDER.json

It is torch's elastic agent, called through its API, which says which worker ended how; the command line of torchrun
only prints it, and takes options from PET_* variables that are not for it. It is a process of its own, because the
agent replaces signal handlers and environment variables, which are the caller's.

SIGTERM ends this process at once until it has workers: while torch is imported, and while the nodes meet, which takes
minutes where a pod still pulls its image, and which no handler of Python's could end. Then the first one ends the
workers, which save before they go. Any other is ignored: it would take them from their saving, and supervisors that
signal every process they know, besides the one that passes it on, are common.
"""

import logging
import os
import signal
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from osft.errors import OsftError, PreemptedError, TrainingError
from osft.logs import configure_logging
from osft.processes.order import NodeOrder, recorded_error, save_failure
from osft.processes.preemption import PREEMPTED_EXIT_CODE
from osft.workspace import read_json

logger = logging.getLogger(__name__)

WORKER_MODULE = "osft.training.worker"
# Where the agent keeps the error files of its workers, beside the order.
AGENT_FOLDER = "agent"
# From SIGTERM to SIGKILL of the workers. The agent's own 30 s are what a pod has at least; a pod that was given more
# has more, and whoever gave it ends everything afterwards.
SHUTDOWN_SECONDS = 600
# Those that the elastic agent is to have handlers for.
OTHER_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"
# How a worker ends that was told to.
TOLD_TO = (-signal.SIGTERM, PREEMPTED_EXIT_CODE)
# Signals that say what went wrong.
SIGNAL_HINTS = {
    signal.SIGKILL: "killed: is the machine out of memory?",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGABRT: "aborted by native code",
    signal.SIGBUS: "is /dev/shm or the disk full?",
}


def main() -> None:
    """Run the order in the file ``sys.argv[1]``; the exit code is 0, 1, or 143 after SIGTERM."""
    configure_logging(logging.WARNING)
    order_file = Path(sys.argv[1])
    _end_with_parent()
    order = NodeOrder.load(order_file)
    launch = _launch_config(order, order_file.parent)
    try:
        elastic_launch(launch, sys.executable)("-u", "-m", WORKER_MODULE, str(order_file))
    except ChildFailedError as error:
        save_failure(order_file, root_cause(error.failures))
        sys.exit(1)
    except SignalException as error:
        save_failure(order_file, _stopped(order, order_file.parent, error.sigval))
        sys.exit(PREEMPTED_EXIT_CODE if error.sigval == signal.SIGTERM else 1)


class _AboutToStart(DefaultLogsSpecs):
    """Where the workers' logs go, which the elastic agent asks for as its last act before it starts them."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        signal.signal(signal.SIGTERM, _stop_once)
        return super().reify(envs)


def _stop_once(number: int, frame: FrameType | None) -> None:
    """Let the elastic agent end the workers and wait for them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SignalException(f"the agent got {signal.SIGTERM.name}", sigval=signal.SIGTERM)


def _end_with_parent() -> None:
    """End the workers when the process that holds the other end of standard input is gone: nobody waits for them."""

    def wait() -> None:
        # Not through sys.stdin, whose lock would be held when the interpreter ends.
        while os.read(sys.stdin.fileno(), 1):
            continue
        # The agent passes it on, and no worker has a handler for it.
        os.kill(os.getpid(), signal.SIGQUIT)

    threading.Thread(target=wait, name="osft-parent", daemon=True).start()


def _launch_config(order: NodeOrder, folder: Path) -> LaunchConfig:
    launch = LaunchConfig(
        min_nodes=order.nnodes,
        max_nodes=order.nnodes,
        nproc_per_node=order.nproc_per_node,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=_AboutToStart(log_dir=str(folder / AGENT_FOLDER)),
        signals_to_handle=OTHER_SIGNALS,
    )
    if order.rdzv_endpoint is None:
        # Any free port, and an address that needs no name to be looked up.
        return replace(
            launch,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            run_id=uuid.uuid4().hex,
        )
    # The static rendezvous honours node_rank and lets node 0 listen on 0.0.0.0 while the others name its address.
    return replace(
        launch,
        rdzv_backend="static",
        rdzv_endpoint=order.rdzv_endpoint,
        rdzv_configs={**launch.rdzv_configs, "rank": order.node_rank},
        run_id=str(order.rdzv_id or 0),
    )


def root_cause(failures: dict[int, ProcessFailure]) -> OsftError:
    """Return why the run failed: the end that no other one explains.

    A process that was killed takes the collectives of the others with it, and they may report that first. The agent
    ends the rest by SIGTERM.

    Args:
        failures: how the processes of this node ended, by global rank.
    """
    told_to = [rank for rank, failure in failures.items() if failure.exitcode in TOLD_TO]
    candidates = [rank for rank in failures if rank not in told_to] or told_to
    # Times are whole seconds; of two ends in one, the kill is the cause.
    global_rank = min(candidates, key=lambda rank: (failures[rank].timestamp, failures[rank].exitcode >= 0))
    failure = failures[global_rank]
    text = _recorded(failure)
    if not text:
        return TrainingError(f"rank {global_rank} ended with {describe_exit(failure.exitcode)}.")
    return recorded_error(text) or TrainingError(f"rank {global_rank}: {' '.join(text.split())}")


def describe_exit(exit_code: int) -> str:
    """Return an exit code in words; a negative one is a signal's."""
    if exit_code >= 0:
        return f"exit code {exit_code}; its own message is further up in the log"
    name = signal.Signals(-exit_code).name
    return f"exit code {exit_code} ({SIGNAL_HINTS.get(signal.Signals(-exit_code), name)})"


def _recorded(failure: ProcessFailure) -> str:
    """Return ``Kind: message`` of the exception that the process left in its error file, or nothing."""
    return _message_of(failure.error_file_data)


def _message_of(data: object) -> str:
    message = data.get("message") if isinstance(data, dict) else None
    return str(message.get("message", "")) if isinstance(message, dict) else ""


def _stopped(order: NodeOrder, folder: Path, number: signal.Signals) -> PreemptedError:
    """Return what the workers said as they stopped, if they had come so far that there was something to save."""
    for file in sorted(folder.glob(f"{AGENT_FOLDER}/**/error.json")):
        error = recorded_error(_message_of(read_json(file)))
        if isinstance(error, PreemptedError):
            return error
    return PreemptedError(
        f"training in {order.ckpt_output_dir} was stopped by {number.name}; the same call goes on from what is there."
    )


if __name__ == "__main__":
    main()
