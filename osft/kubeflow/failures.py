"""Why nodes failed, as each one leaves it on the workspace beside the run's order.

The first one to fail is the one to believe: those after it mostly tell that they have lost it.
"""

from pathlib import Path

from osft.errors import OsftError
from osft.processes.order import raise_failure_of, save_failure


def leave_failure(order_file: Path, node_rank: int, error: OsftError) -> None:
    """Write down why a node failed, for :func:`first_failure`."""
    save_failure(order_file.parent / f"node-{node_rank}" / order_file.name, error)


def forget_failures(order_file: Path) -> None:
    """Remove what an earlier job of the same order left."""
    for failure in _failures(order_file):
        failure.unlink()


def first_failure(order_file: Path) -> OsftError | None:
    """Return why the node that failed first did; ``None`` if none has said so."""
    for failure in _failures(order_file):
        try:
            raise_failure_of(failure.with_name(order_file.name))
        except OsftError as error:
            return error
    return None


def _failures(order_file: Path) -> list[Path]:
    """Return what nodes left, in the order in which they did."""
    return sorted(order_file.parent.glob("node-*/failure.json"), key=lambda path: path.stat().st_mtime_ns)
