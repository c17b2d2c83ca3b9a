"""The process that torchrun starts: reads an order and trains.

python -m torch.distributed.run --nproc-per-node 2 --module osft.processes.worker ORDER.json
"""

import logging
import os
import sys
from pathlib import Path

from osft.errors import OsftError
from osft.logs import configure_logging
from osft.processes.order import WorkOrder, save_failure
from osft.training.loop import train


def main() -> None:
    """Train as the file ``sys.argv[1]`` says; information is logged by the first process alone, warnings by all."""
    first = os.environ.get("RANK", "0") == "0"
    configure_logging(logging.INFO if first else logging.WARNING)
    order_file = Path(sys.argv[1])
    order = WorkOrder.load(order_file)
    try:
        train(order.config, order.train_data)
    except OsftError as error:
        save_failure(order_file, error)
        raise


if __name__ == "__main__":
    main()
