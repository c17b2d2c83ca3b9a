"""What a step reports: one JSON line in ``metrics.jsonl``, and a line in the log now and then."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from osft.errors import TrainingError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimizer step."""

    step: int
    """From 1."""

    total_steps: int
    epoch: float
    """Passes over the data so far, the present one in part."""

    loss: float
    """Mean cross-entropy of the trained tokens of the effective batch, in nats, before the step."""

    learning_rate: float
    gradient_norm: float
    """Euclidean norm of the gradient of all that is trained, before clipping."""

    loss_tokens: int
    """Trained tokens of the effective batch."""

    tokens_per_second: float
    """Tokens through the model, padding left out, over all processes."""

    seconds: float
    """Wall time of the step."""

    peak_memory_gib: float | None
    """Most memory that tensors took on the first process's GPU so far; ``None`` on a CPU."""


class MetricsFile:
    """Appends each step to a JSON-lines file; a step is on disk before the next one starts."""

    def __init__(self, path: Path) -> None:
        """Start an empty file at ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")

    def write(self, metrics: StepMetrics) -> None:
        """Append one line."""
        self._file.write(orjson.dumps(asdict(metrics), option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProgressLog:
    """Logs the first step, the last, and one about every five seconds between them."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._last_line = float("-inf")

    def __call__(self, metrics: StepMetrics) -> None:
        """Log ``metrics`` if it is time to."""
        now = time.monotonic()
        if metrics.step < metrics.total_steps and now - self._last_line < SECONDS_BETWEEN_LOG_LINES:
            return
        self._last_line = now
        remaining_seconds = (now - self._start) / metrics.step * (metrics.total_steps - metrics.step)
        logger.info(
            "step %d of %d (epoch %.1f): loss %.4f, learning rate %.2e, %.0f tokens/s, %.0f s left",
            metrics.step, metrics.total_steps, metrics.epoch, metrics.loss, metrics.learning_rate,
            metrics.tokens_per_second, remaining_seconds,
        )  # fmt: skip


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return the steps in ``path``.

    Raises:
        TrainingError: if a line is not a step.
    """
    try:
        return [StepMetrics(**orjson.loads(line)) for line in path.read_bytes().splitlines()]
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not a metrics file of this version ({error}). Train again.") from error
