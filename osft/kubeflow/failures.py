"""Why nodes failed, as each one leaves it on the workspace beside the run's order.

The first one to fail is the one to believe: those after it mostly tell that they have lost it. A node that is started
again takes its own back, so what lies there is of nodes that have not come back.
"""

import logging
from pathlib import Path

from osft.errors import OsftError, one_line
from osft.processes.order import failure_error, save_failure
from osft.workspace import read_json

logger = logging.getLogger(__name__)

FAILURE_NAME = "failure.json"


def leave_failure(order_file: Path, node_rank: int, error: OsftError) -> None:
    """Write down why a node failed, for :func:`first_failure`."""
    save_failure(_folder(order_file, node_rank) / order_file.name, error)


def forget_failure(order_file: Path, node_rank: int) -> None:
    """Remove what an earlier try of a node left."""
    (_folder(order_file, node_rank) / FAILURE_NAME).unlink(missing_ok=True)


def forget_failures(order_file: Path) -> None:
    """Remove what an earlier job of the same order left."""
    for failure in _failures(order_file):
        failure.unlink(missing_ok=True)


def first_failure(order_file: Path) -> OsftError | None:
    """Return why the node that failed first did; ``None`` if none has said so, or what it said cannot be read now."""
    try:
        failures = sorted(_failures(order_file), key=lambda path: path.stat().st_mtime_ns)
        return failure_error(read_json(failures[0])) if failures else None
    except (OSError, ValueError, KeyError) as error:
        # Its node took it back meanwhile, or the volume does not show all of it yet.
        logger.debug("a node's failure cannot be read: %s", one_line(error))
        return None


def _failures(order_file: Path) -> list[Path]:
    return list(order_file.parent.glob(f"node-*/{FAILURE_NAME}"))


def _folder(order_file: Path, node_rank: int) -> Path:
    return order_file.parent / f"node-{node_rank}"
