"""What a training pod runs: the processes of one node, as the run's order and the pod's environment say.

python -m osft.kubeflow.node ORDER.json NODES

Kubeflow Trainer's torch plugin says in ``PET_*`` variables how many nodes there are, which one this is and where the
first one is: what torchrun takes for its options. A runtime without that plugin starts the same pods and says nothing,
and each would train a model of its own into the same folder; so the job says how many nodes it has, too. The order lies
on the workspace, the same for every node; why a node failed is left beside it, where the step that follows the job
finds it also after the pod and its log are gone.
"""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from osft.errors import ConfigError, OsftError, PreemptedError
from osft.kubeflow.failures import forget_failure, leave_failure
from osft.logs import configure_logging
from osft.processes.environment import Surroundings
from osft.processes.order import WorkOrder
from osft.processes.preemption import PREEMPTED_EXIT_CODE
from osft.processes.torchrun import launch

logger = logging.getLogger(__name__)

RANK_VARIABLE = "PET_NODE_RANK"


def main() -> None:
    """Train as the order in the file ``sys.argv[1]`` says; the exit code is 0, 1, or 143 for a preempted node."""
    configure_logging()
    order_file, nodes = Path(sys.argv[1]), int(sys.argv[2])
    text = os.environ.get(RANK_VARIABLE, "")
    node_rank = int(text) if text.isdecimal() else 0
    forget_failure(order_file, node_rank)
    try:
        surroundings = _read_surroundings(nodes)
        launch(replace(WorkOrder.load(order_file).config, **surroundings.complete({})))
    except OsftError as error:
        leave_failure(order_file, node_rank, error)
        if not isinstance(error, PreemptedError):
            raise
        logger.warning("%s", error)
        sys.exit(PREEMPTED_EXIT_CODE)


def _read_surroundings(nodes: int) -> Surroundings:
    """Return what the runtime says of this node.

    Raises:
        ConfigError: if it does not say that there are ``nodes`` of them.
    """
    surroundings = Surroundings.read(os.environ)
    if surroundings.nnodes != nodes:
        said = f"PET_NNODES={surroundings.nnodes}" if surroundings.nnodes else "no PET_NNODES"
        raise ConfigError(
            f"the TrainJob has train_num_nodes={nodes}, but its runtime gives the pods {said}: train_runtime is not a "
            "torch runtime. Set it to one with mlPolicy torch, e.g. torch-distributed."
        )
    return surroundings


if __name__ == "__main__":
    main()
