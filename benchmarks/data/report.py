"""The numbers of ``benchmarks/data/``: rates, ratios and memory, each with its goal, as JSON and as tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from rich.console import Console
from rich.table import Column, Table

from benchmarks.data.worker import Measurement
from benchmarks.report import Origin, Result

Round = Mapping[str, Measurement]
"""What was measured side by side, by the name of the task; a task may have sat a round out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A bound for a number."""

    bound: float
    at_least: bool

    def is_met(self, value: float) -> bool:
        """Whether ``value`` is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:,.10g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One measured number."""

    what: str
    """With its unit; a ratio has none."""

    value: float
    rows: int | None = None
    """Of how many rows; ``None`` where sizes are not compared."""

    goal: Goal | None = None

    def result(self, origin: Origin) -> Result:
        """Return the line as all benchmarks write theirs."""
        return Result(
            metric=self.what if self.rows is None else f"{self.what}, {self.rows:,} rows",
            value=self.value,
            goal=None if self.goal is None else self.goal.bound,
            met=None if self.goal is None else self.goal.is_met(self.value),
            machine=origin.machine,
            command=origin.command,
        )


TITLES = {
    "parse": "parsing alone (orjson, one process)",
    "validate": "validation",
    "encode": "encode_batch alone (2 threads)",
    "process": "processing",
    "peer": "instructlab-training 0.16.2 (2 processes)",
}
RATE_GOALS = {"validate": Goal(bound=60_000, at_least=True)}
# Rows a second of the first over those of the second.
RATIO_GOALS = {
    ("validate", "parse"): None,
    ("process", "encode"): Goal(bound=0.80, at_least=True),
    ("process", "peer"): Goal(bound=3.5, at_least=True),
}
# Not of parse and encode_batch: the first keeps nothing, the second has all texts in memory.
PEAK_GOALS = {"validate": Goal(bound=1e9, at_least=False), "process": None, "peer": None}
GROWTH_GOAL = Goal(bound=1.2, at_least=False)
# Below, buffers and look-ahead are not filled yet, so memory still grows with the rows.
MIN_ROWS_OF_STEADY_MEMORY = 200_000
GROWTH_TASKS = ("validate", "process")


def compare_tasks(rows: int, rounds: Sequence[Round]) -> list[Line]:
    """Return rates, their ratios and memory at one number of rows."""
    present = [task for task in TITLES if any(task in each for each in rounds)]
    lines = []
    for task in present:
        rate = _median_of(rounds, (task,), lambda one: one.rows_per_second)
        lines.append(Line(what=f"{TITLES[task]}, rows/s", rows=rows, value=rate, goal=RATE_GOALS.get(task)))
    for pair, goal in RATIO_GOALS.items():
        if set(pair) <= set(present):
            ratio = _median_of(rounds, pair, lambda ours, theirs: ours.rows_per_second / theirs.rows_per_second)
            what = f"{TITLES[pair[0]]} / {TITLES[pair[1]]}, rows/s"
            lines.append(Line(what=what, rows=rows, value=ratio, goal=goal))
    for task, goal in PEAK_GOALS.items():
        if task in present:
            lines += _list_peaks(rows, rounds, task, goal)
    if "process" in present:
        again = _median_of(rounds, ("process",), lambda one: one.timing.again_seconds or 0.0)
        lines.append(Line(what="processing asked for again, s", rows=rows, value=again))
    return lines


def _median_of(rounds: Sequence[Round], tasks: Sequence[str], compute: Callable[..., float]) -> float:
    """Return the median over the rounds that have all ``tasks`` of what ``compute`` makes of their measurements."""
    whole = [each for each in rounds if set(tasks) <= set(each)]
    return median(compute(*(each[task] for task in tasks)) for each in whole)


def _list_peaks(rows: int, rounds: Sequence[Round], task: str, goal: Goal | None) -> list[Line]:
    main = max(each[task].timing.main_peak_bytes for each in rounds if task in each)
    return [
        Line(what=f"{TITLES[task]}, peak memory in bytes", rows=rows, value=peak_bytes(rounds, task), goal=goal),
        Line(what=f"{TITLES[task]}, of it the main process's own peak in bytes", rows=rows, value=main),
    ]


def peak_bytes(rounds: Sequence[Round], task: str) -> int:
    """Return the largest memory that ``task`` took in any round."""
    return max(each[task].peak_bytes for each in rounds if task in each)


def compare_sizes(rounds_of_size: Mapping[int, Sequence[Round]]) -> list[Line]:
    """Return how much memory each size takes, over that of the next smaller one."""
    lines = []
    for smaller, larger in pairwise(sorted(rounds_of_size)):
        goal = GROWTH_GOAL if smaller >= MIN_ROWS_OF_STEADY_MEMORY else None
        for task in GROWTH_TASKS:
            ratio = peak_bytes(rounds_of_size[larger], task) / peak_bytes(rounds_of_size[smaller], task)
            what = f"{TITLES[task]}, peak memory / that of {smaller:,} rows"
            lines.append(Line(what=what, rows=larger, value=ratio, goal=goal))
    return lines


def describe_download(kind: str, measurement: Measurement) -> list[Line]:
    """Return how fast rows arrive from a server on this machine; ``kind`` says in what file."""
    timing = measurement.timing
    size_bytes = timing.size_bytes or 0
    what = f"download of {size_bytes / 1e6:,.1f} MB, {kind}, bytes of rows/s"
    return [
        Line(what=what, value=size_bytes / timing.seconds),
        Line(what=f"download asked for again, unchanged, {kind}, s", value=timing.again_seconds or 0.0),
        Line(what=f"download, {kind}, peak memory in bytes", value=measurement.peak_bytes),
    ]


def print_lines(console: Console, lines: Iterable[Line]) -> None:
    """Draw one table with a column a size, one of the lines that have none, and the goals that are missed."""
    lines = list(lines)
    sizes = sorted({line.rows for line in lines if line.rows is not None})
    columns = [Column(f"{size:,} rows", justify="right") for size in sizes]
    by_size = Table("measured", *columns, "goal", title="By number of rows", title_justify="left")
    for what in dict.fromkeys(line.what for line in lines if line.rows is not None):
        cells = {line.rows: line for line in lines if line.what == what}
        goals = [str(line.goal) for line in cells.values() if line.goal is not None]
        values = [_format(cells[size]) if size in cells else "" for size in sizes]
        by_size.add_row(what, *values, goals[0] if goals else "")
    others = Table("also measured", Column("value", justify="right"))
    for line in lines:
        if line.rows is None:
            others.add_row(line.what, _format(line))
    for table in (by_size, others):
        if table.row_count:
            console.print(table)


def _format(line: Line) -> str:
    value = f"{line.value:,.0f}" if line.value >= 1_000 else f"{line.value:.3g}"
    return value if line.goal is None or line.goal.is_met(line.value) else f"{value} (missed)"
