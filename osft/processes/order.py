"""What goes between ``osft()`` and the processes that torchrun starts for it: an order there, a failure back."""

from dataclasses import asdict, dataclass
from pathlib import Path

from osft.config import TrainingConfig
from osft.errors import OsftError
from osft.workspace import read_json, write_json

KINDS = {kind.__name__: kind for kind in OsftError.__subclasses__()}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkOrder:
    """One training run, as a file."""

    config: TrainingConfig
    train_data: Path
    """Token ids to train on."""

    def save(self, path: Path) -> None:
        """Write the order as JSON."""
        write_json(path, {"config": asdict(self.config), "train_data": str(self.train_data)})

    @classmethod
    def load(cls, path: Path) -> "WorkOrder":
        """Read an order back."""
        fields = read_json(path)
        patterns = fields["config"]["target_patterns"]
        fields["config"]["target_patterns"] = None if patterns is None else tuple(patterns)
        return cls(config=TrainingConfig(**fields["config"]), train_data=Path(fields["train_data"]))


def save_failure(order_file: Path, error: OsftError) -> None:
    """Leave kind and message of ``error`` beside the order."""
    write_json(_failure_file(order_file), {"kind": type(error).__name__, "message": str(error)})


def raise_failure_of(order_file: Path) -> None:
    """Raise what a process left with :func:`save_failure`; return if none did.

    Raises:
        OsftError: of the same kind, with the same message.
    """
    failure_file = _failure_file(order_file)
    if failure_file.is_file():
        failure = read_json(failure_file)
        raise KINDS[failure["kind"]](failure["message"])


def _failure_file(order_file: Path) -> Path:
    return order_file.with_name("failure.json")
