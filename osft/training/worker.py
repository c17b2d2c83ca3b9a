"""The process that the agent starts: reads an order and trains.

What it raises goes into the file that torchelastic keeps for each worker, where the agent finds it.
"""

import logging
import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from osft.errors import OsftError, PreemptedError
from osft.logs import configure_logging
from osft.processes.order import WorkOrder
from osft.processes.preemption import PREEMPTED_EXIT_CODE
from osft.training.loop import train

# The module's own name is __main__ here.
logger = logging.getLogger("osft.training.worker")


@record
def main() -> None:
    """Train as the file ``sys.argv[1]`` says; information is logged by the first process alone, warnings by all."""
    first = os.environ.get("RANK", "0") == "0"
    configure_logging(logging.INFO if first else logging.WARNING)
    train(WorkOrder.load(Path(sys.argv[1])).config)


if __name__ == "__main__":
    try:
        main()
    except OsftError as error:
        # Its message says it all; a traceback a process would only hide it.
        logger.error("rank %s: %s", os.environ.get("RANK"), error)
        sys.exit(PREEMPTED_EXIT_CODE if isinstance(error, PreemptedError) else 1)
