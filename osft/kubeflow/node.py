"""What a training pod runs: the processes of one node, as the run's order and the pod's environment say.

python -m osft.kubeflow.node ORDER.json

Kubeflow Trainer's torch plugin says in ``PET_*`` variables how many nodes there are, which one this is and where the
first one is: what torchrun takes for its options. The order lies on the workspace, the same for every node; why a node
failed is left beside it, where the step that follows the job finds it also after the pod and its log are gone.
"""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from osft.errors import OsftError, PreemptedError
from osft.kubeflow.failures import leave_failure
from osft.logs import configure_logging
from osft.processes.environment import Surroundings
from osft.processes.order import WorkOrder
from osft.processes.preemption import PREEMPTED_EXIT_CODE
from osft.processes.torchrun import launch

logger = logging.getLogger(__name__)


def main() -> None:
    """Train as the order in the file ``sys.argv[1]`` says; the exit code is 0, 1, or 143 for a preempted node."""
    configure_logging()
    order_file = Path(sys.argv[1])
    surroundings = Surroundings.read(os.environ)
    try:
        launch(replace(WorkOrder.load(order_file).config, **surroundings.complete({})))
    except OsftError as error:
        leave_failure(order_file, surroundings.node_rank or 0, error)
        if not isinstance(error, PreemptedError):
            raise
        logger.warning("%s", error)
        sys.exit(PREEMPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
