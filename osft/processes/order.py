"""What goes between ``osft()`` and the processes that are started for it: an order there, a failure back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from osft.config import TrainingConfig
from osft.errors import OsftError, TrainingError
from osft.workspace import read_json, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkOrder:
    """One training run, as a file."""

    config: TrainingConfig

    def save(self, path: Path) -> None:
        """Write the order as JSON."""
        write_json(path, {"config": asdict(self.config)})

    @classmethod
    def load(cls, path: Path) -> "WorkOrder":
        """Read an order back."""
        config = read_json(path)["config"]
        patterns = config["target_patterns"]
        config["target_patterns"] = None if patterns is None else tuple(patterns)
        return cls(config=TrainingConfig(**config))


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeOrder:
    """What of an order says which processes to start on this node.

    The whole configuration would need the libraries that it is checked against, seconds before anything starts.
    """

    nnodes: int
    node_rank: int
    nproc_per_node: int
    rdzv_id: int | None
    rdzv_endpoint: str | None
    ckpt_output_dir: str

    @classmethod
    def load(cls, path: Path) -> "NodeOrder":
        """Read it from the file of a :class:`WorkOrder`."""
        config = read_json(path)["config"]
        return cls(**{field.name: config[field.name] for field in fields(cls)})


def as_failure(error: OsftError) -> dict[str, str]:
    """Return kind and message of ``error``, as they travel between processes."""
    return {"kind": type(error).__name__, "message": str(error)}


def failure_error(failure: Mapping[str, str]) -> OsftError:
    """Return the error that :func:`as_failure` was given: of the same kind, with the same message."""
    return _kinds()[failure["kind"]](failure["message"])


def recorded_error(text: str) -> OsftError | None:
    """Return the error that torchelastic's error file names as ``Kind: message``; ``None`` if it is none of ours."""
    kind, _, message = text.partition(": ")
    known = _kinds().get(kind)
    return None if known is None else known(message)


def save_failure(order_file: Path, error: OsftError) -> None:
    """Leave kind and message of ``error`` beside the order."""
    write_json(_failure_file(order_file), as_failure(error))


def raise_failure_of(order_file: Path) -> None:
    """Raise what a process left with :func:`save_failure`; return if none did.

    Raises:
        OsftError: of the same kind, with the same message.
    """
    failure_file = _failure_file(order_file)
    if failure_file.is_file():
        raise failure_error(read_json(failure_file))


def _kinds() -> dict[str, type[OsftError]]:
    return {kind.__name__: kind for parent in (OsftError, TrainingError) for kind in parent.__subclasses__()}


def _failure_file(order_file: Path) -> Path:
    return order_file.with_name("failure.json")
