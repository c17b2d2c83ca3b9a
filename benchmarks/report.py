"""What was measured: one object a number, with its goal, as JSON and as tables."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import orjson
import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.timing import StepTime

BYTES_PER_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One measured number."""

    metric: str
    """What was measured, on what, and its unit; a ratio has none."""

    value: float | None
    """``None``: the model does not fit into the GPU's memory."""

    goal: float | None
    """The largest value that is good enough; ``None``: the number is only reported."""

    met: bool | None
    """Whether it is; ``None`` without a goal."""

    machine: str
    """The kind of machine."""

    command: str
    """What measures it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where the numbers of one run of the benchmark come from."""

    machine: str
    command: str

    def result(self, metric: str, value: float | None, goal: float | None = None) -> Result:
        """Return ``value`` as a result; every goal is an upper bound."""
        met = None if goal is None else value is not None and value <= goal
        return Result(metric=metric, value=value, goal=goal, met=met, machine=self.machine, command=self.command)


def describe_machine(*, on_gpu: bool, threads: int) -> str:
    """Return the kind of machine: its GPU or its processor, memory and the release of torch."""
    torch_release = f"torch {torch.__version__}"
    if on_gpu:
        card = torch.cuda.get_device_properties(0)
        return f"one {card.name}, {card.total_memory / BYTES_PER_GIB:.0f} GiB, {torch_release}"
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GIB
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {_processor_name()}, {threads} threads, {memory_gib:.0f} GiB, {torch_release}"


def _processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def median_ratio(numerators: Sequence[StepTime], denominators: Sequence[StepTime]) -> float:
    """Return the median of the rounds' ratios of step times: both times of a ratio were taken side by side."""
    pairs = zip(numerators, denominators, strict=True)
    return median(numerator.seconds / denominator.seconds for numerator, denominator in pairs)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write ``results`` to ``path``; what other machines left there stays."""
    machines = {result.machine for result in results}
    before = orjson.loads(path.read_bytes()) if path.exists() else []
    kept = [entry for entry in before if entry["machine"] not in machines]
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [*kept, *(asdict(result) for result in results)]
    path.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def print_results(console: Console, results: Sequence[Result]) -> None:
    """Draw two tables: the goals, then what is only reported."""
    goals = Table("goal", "measured", "at most", "met", title="Goals", title_justify="left")
    reported = Table("reported", "measured", title="Also measured", title_justify="left")
    for result in results:
        value = "does not fit" if result.value is None else f"{result.value:.3g}"
        if result.goal is None:
            reported.add_row(result.metric, value)
        else:
            goals.add_row(result.metric, value, f"{result.goal:g}", "yes" if result.met else "no")
    for table in (goals, reported):
        if table.row_count:
            console.print(table)


def print_steps(console: Console, title: str, times: dict[tuple[str, int], list[StepTime]], micro_batches: int) -> None:
    """Draw the step times of one shape, a row a variant, in medians.

    A step of many micro-batches that was not measured is counted from the parts of one of a single micro-batch, and
    marked with "~".
    """
    table = Table(
        Column("variant", no_wrap=True),
        "1 a step, s",
        "of it once a step, s",
        f"{micro_batches} a step, s",
        "state, GiB",
        "peak, GiB",
        "prepared, s",
        title=f"{title}, medians",
        title_justify="left",
    )
    for name in dict.fromkeys(name for name, _ in times):
        single, long = times[name, 1], times.get((name, micro_batches), [])
        last = single[-1]
        table.add_row(
            name,
            f"{median(step.seconds for step in single):.3f}",
            f"{median(step.update_seconds for step in single):.3f}",
            f"{median(step.seconds for step in long):.3f}" if long else f"~{_count_step(single, micro_batches):.3f}",
            f"{last.state_bytes / BYTES_PER_GIB:.2f}",
            "" if last.peak_bytes is None else f"{last.peak_bytes / BYTES_PER_GIB:.2f}",
            f"{last.prepare_seconds:.1f}",
        )
    console.print(table)


def _count_step(single: Sequence[StepTime], micro_batches: int) -> float:
    accumulate = median(step.accumulate_seconds for step in single)
    return micro_batches * accumulate + median(step.update_seconds for step in single)
