"""What a step reports: one JSON line in ``metrics.jsonl``, and a progress bar or a line in the log now and then."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from osft.errors import TrainingError
from osft.logs import logged_above_bar
from osft.workspace import atomic_file

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 5.0
BYTES_PER_GIB = 1 << 30
# getrusage counts in bytes there, in KiB elsewhere.
BYTES_PER_RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1 << 10


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

    peak_memory_gib: float
    """Most memory of the first process so far: of the tensors on its GPU, or, on a CPU, of the whole process."""


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory that tensors took on ``device`` so far; on a CPU, the process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / BYTES_PER_GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_RUSAGE_UNIT / BYTES_PER_GIB


class MetricsFile:
    """Appends each step to a JSON-lines file; a step is on disk before the next one starts."""

    def __init__(self, path: Path, steps_before: int = 0) -> None:
        """Open the file at ``path`` behind its first ``steps_before`` steps; what follows them is dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _first_lines(path, steps_before) if steps_before and path.is_file() else []
        if len(kept) < steps_before:
            logger.warning("%s: has %d of the %d steps before; the rest is lost", path, len(kept), steps_before)
        with atomic_file(path) as file:
            file.writelines(kept)
        self._file = path.open("ab")

    def write(self, metrics: StepMetrics) -> None:
        """Append one line."""
        self._file.write(orjson.dumps(asdict(metrics), option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _first_lines(path: Path, steps: int) -> list[bytes]:
    """Return the whole lines in ``path`` of the first ``steps`` steps; a killed process may leave a part of one."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in lines if orjson.loads(line)["step"] <= steps]


@contextmanager
def reporting(path: Path | None, total_steps: int, steps_before: int = 0) -> Iterator[Callable[[StepMetrics], None]]:
    """Yield what takes each step's metrics to the file ``path`` and shows them; without a path it does nothing.

    Of a run that goes on, the metrics of the ``steps_before`` stay in the file.
    """
    if path is None:
        yield lambda metrics: None
        return
    file = MetricsFile(path, steps_before)
    try:
        with show_progress(total_steps, steps_before) as show:

            def report(metrics: StepMetrics) -> None:
                file.write(metrics)
                show(metrics)

            yield report
    finally:
        file.close()


@contextmanager
def show_progress(total_steps: int, steps_before: int = 0) -> Iterator[Callable[[StepMetrics], None]]:
    """Yield what shows each step: a bar if standard error is a terminal, else a :class:`ProgressLog`."""
    # Not rich's own test, which takes any output for a terminal where colours are asked for.
    if not sys.stderr.isatty():
        yield ProgressLog(steps_before)
        return
    columns = (
        TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
    )  # fmt: skip
    terminal = sys.stderr
    with Progress(*columns, console=Console(file=terminal)) as progress, logged_above_bar(terminal):
        task = progress.add_task("", total=total_steps, completed=steps_before)

        def show(metrics: StepMetrics) -> None:
            description = f"loss {metrics.loss:.4f}, {metrics.tokens_per_second:.0f} tokens/s"
            progress.update(task, completed=metrics.step, description=description)

        yield show


class ProgressLog:
    """Logs the first step, the last, and one about every five seconds between them."""

    def __init__(self, steps_before: int = 0) -> None:
        """Start the clock after ``steps_before`` steps."""
        self._steps_before = steps_before
        self._start = time.monotonic()
        self._last_line = float("-inf")

    def __call__(self, metrics: StepMetrics) -> None:
        """Log ``metrics`` if it is time to."""
        now = time.monotonic()
        if metrics.step < metrics.total_steps and now - self._last_line < SECONDS_BETWEEN_LOG_LINES:
            return
        self._last_line = now
        seconds_per_step = (now - self._start) / (metrics.step - self._steps_before)
        remaining_seconds = seconds_per_step * (metrics.total_steps - metrics.step)
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
