"""A task in a fresh process, so that its memory, its threads and what it has cached are its own; watched from here.

Memory is what the process and all that it starts hold at once: the sum of their resident sets, looked at
ten times a second. A page that several of them share counts for each. For the first process alone Linux keeps the
largest value itself (``VmHWM``); ``ru_maxrss``, which looks the same, begins with the memory of whoever started the
process.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from osft.errors import OsftError

ROOT = Path(__file__).parents[2]
MEASURED_NAME = "measured.json"
# A look takes 3 ms: more of them would slow down what is measured.
SAMPLE_SECONDS = 0.1
LINES_IN_ERROR = 20
# The tokenizer comes from a folder: without this its library first asks a hub, then waits for time-outs.
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class MeasurementError(OsftError, RuntimeError):
    """A task did not do what is to be measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Something to measure."""

    command: tuple[str, ...]
    """What starts it. SOURCE FOLDER TOKENIZER follow; it leaves :class:`Timing` as ``measured.json`` in FOLDER."""

    source: str
    tokenizer: Path
    rows: int
    """How many must come out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What a task measures of itself."""

    rows: int
    """Rows that came out whole."""

    seconds: float
    main_peak_bytes: int
    """Largest resident set of the task's first process until the clock stopped."""

    size_bytes: int | None = None
    """Bytes of the rows, where the task counts them."""

    again_seconds: float | None = None
    """The same asked for once more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run of one task."""

    timing: Timing
    peak_bytes: int
    """Largest sum of the resident sets of all its processes."""

    @property
    def rows_per_second(self) -> float:
        """Rows over the seconds of the wall clock."""
        return self.timing.rows / self.timing.seconds


def measure(task: Task, workdir: Path) -> Measurement:
    """Run ``task`` with a folder of its own in ``workdir``, which is removed afterwards.

    Raises:
        MeasurementError: if the task fails, or another number of rows comes out.
    """
    with tempfile.TemporaryDirectory(dir=workdir, prefix=".task-") as folder:
        command = [*task.command, task.source, folder, str(task.tokenizer)]
        peak_bytes = _run(command, Path(folder) / "log")
        timing = Timing(**orjson.loads((Path(folder) / MEASURED_NAME).read_bytes()))
    if timing.rows != task.rows:
        raise MeasurementError(
            f"{' '.join(task.command)}: {timing.rows} of {task.rows} rows came out. Rates compare for equal rows only."
        )
    return Measurement(timing=timing, peak_bytes=peak_bytes)


def peak_bytes_of_this_process() -> int:
    """Return the largest resident set that this process has had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if match is None:
        raise MeasurementError("/proc/self/status does not tell the largest resident set. Measure on Linux.")
    return int(match[1]) * 1024


def _run(command: Sequence[str], log: Path) -> int:
    """Run ``command`` to its end and return the largest sum of resident sets; what it prints goes to ``log``."""
    peak_bytes = 0
    with (
        log.open("wb") as file,
        subprocess.Popen(  # noqa: S603 our own scripts
            command, cwd=ROOT, env={**os.environ, **OFFLINE}, stdout=file, stderr=file
        ) as process,
    ):
        tree = psutil.Process(process.pid)
        while process.returncode is None:
            peak_bytes = max(peak_bytes, _resident_bytes(tree))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_SECONDS)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_IN_ERROR:]
        raise MeasurementError(f"{' '.join(command)} failed ({process.returncode}):\n" + "\n".join(lines))
    return peak_bytes


def _resident_bytes(tree: psutil.Process) -> int:
    """Return the resident bytes of a process and its descendants; those that end meanwhile count nothing."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (tree, *tree.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total
