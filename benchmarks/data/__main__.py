"""Measure download, validation and processing: ``make bench-data``, or ``python -m benchmarks.data``.

Prints tables and writes ``benchmarks/results/data-<date>.json``. What is measured and how to read it is in
``benchmarks/README.md``.
"""

import datetime
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.data.report import Line, Round, compare_sizes, compare_tasks, describe_download, print_lines
from benchmarks.data.rows import write_conversations, write_download, write_texts, write_tokenizer
from benchmarks.data.server import serve
from benchmarks.data.worker import ROOT, Measurement, Task, measure
from benchmarks.report import Origin, describe_machine, write_results
from osft.logs import configure_logging

logger = logging.getLogger("osft.benchmarks")

RESULTS = ROOT / "benchmarks" / "results"
SIZES = (20_000, 200_000, 2_000_000)
# The goals are for so many; on a larger machine the others are left alone.
CORES = 2
# Where one round takes minutes there are fewer of them: rows -> most rounds.
MAX_ROUNDS = {100_000: 2, 1_000_000: 1}
# At 900 rows a second, the 2,000,000 would take the peer most of an hour.
MAX_PEER_ROWS = 200_000
# Its second round at 200,000 rows would take longer than all else there.
MIN_ROWS_OF_ONE_PEER_ROUND = 100_000
# They lie in memory; the rate of encode_batch is that of any of its batches.
MAX_ENCODED_ROWS = 200_000
DOWNLOAD_BYTES = 200_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where the measurements take place."""

    workdir: Path
    tokenizer: Path
    peer_python: Path | None
    """Interpreter of the peer's environment; ``None``: the peer is left out."""

    rounds: int


def bench(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Number of conversations; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each task is measured; fewer of large ones.")] = 3,
    workdir: Annotated[Path, typer.Option(help="Folder for the conversations, kept for another run.")] = Path(
        "build/bench-data"
    ),
    peer_python: Annotated[Path, typer.Option(help="Interpreter of the peer's environment.")] = Path(
        "build/bench-data-venv/bin/python"
    ),
    skip_peer: Annotated[bool, typer.Option("--skip-peer", help="Leave the peer out.")] = False,
    output: Annotated[Path | None, typer.Option(help="File to write instead of results/data-<date>.json.")] = None,
) -> None:
    """Measure download, validation and processing beside what they are made of, and beside their peer."""
    configure_logging()
    # All that is started from here stays on these cores too.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    command = shlex.join(["python", "-m", "benchmarks.data", *sys.argv[1:]])
    origin = Origin(machine=describe_machine(on_gpu=False, threads=CORES), command=command)
    path = output or RESULTS / f"data-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.json"
    workdir = workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    place = Bench(
        workdir=workdir,
        tokenizer=write_tokenizer(workdir),
        peer_python=None if skip_peer else find_peer(peer_python),
        rounds=rounds,
    )
    sizes = sorted(set(rows or SIZES))
    rounds_of_size: dict[int, list[Round]] = {}
    lines: list[Line] = []
    for size in sizes:
        rounds_of_size[size] = measure_size(place, size)
        lines += compare_tasks(size, rounds_of_size[size])
        # After each size: what fails at the next one does not take these along.
        write_results(path, [line.result(origin) for line in lines])
    lines += compare_sizes(rounds_of_size)
    lines += measure_downloads(place, sizes[-1])
    write_results(path, [line.result(origin) for line in lines])
    console = Console()
    print_lines(console, lines)
    console.print(describe_peer(place, sizes))
    logger.info("wrote %s", path.name)


def find_peer(python: Path) -> Path | None:
    """Return the peer's interpreter, or ``None`` with a warning if it is not there."""
    if python.exists():
        # Not resolved: a virtual environment is known by where its link to Python lies.
        return python.absolute()
    logger.warning("%s: there is no such interpreter; the peer is left out", python)
    return None


def describe_peer(place: Bench, sizes: list[int]) -> str:
    """Say at which sizes the peer was not measured."""
    if place.peer_python is None:
        return "The peer was left out: it was not asked for, or its environment is not there."
    if sizes[-1] > MAX_PEER_ROWS:
        return f"The peer is measured up to {MAX_PEER_ROWS:,} rows; more would take it most of an hour."
    return "The peer was measured at every size."


def measure_size(place: Bench, rows: int) -> list[Round]:
    """Measure every task that a file of ``rows`` conversations can have, in rounds whose order alternates."""
    conversations = write_conversations(place.workdir, rows)
    encoded_rows = min(rows, MAX_ENCODED_ROWS)
    encoded = write_conversations(place.workdir, encoded_rows)
    texts = write_texts(place.workdir, encoded, place.tokenizer)
    tasks = {
        "parse": own_task("parse", str(conversations), place, rows),
        "validate": own_task("validate", str(conversations), place, rows),
        "encode": own_task("encode", str(texts), place, encoded_rows),
        "process": own_task("process", str(conversations), place, rows),
    }
    if place.peer_python is not None and rows <= MAX_PEER_ROWS:
        script = str(ROOT / "benchmarks" / "data" / "peer.py")
        command = (str(place.peer_python), script)
        tasks["peer"] = Task(command=command, source=str(conversations), tokenizer=place.tokenizer, rows=rows)
    return [measure_round(place, tasks, rows, number) for number in range(count_rounds(rows, place.rounds))]


def own_task(name: str, source: str, place: Bench, rows: int) -> Task:
    """Return one of :data:`benchmarks.data.tasks.TASKS`."""
    command = (sys.executable, "-m", "benchmarks.data.tasks", name)
    return Task(command=command, source=source, tokenizer=place.tokenizer, rows=rows)


def count_rounds(rows: int, rounds: int) -> int:
    """Return how many of ``rounds`` there are for a file of ``rows`` conversations."""
    return min([rounds, *(most for least_rows, most in MAX_ROUNDS.items() if rows >= least_rows)])


def measure_round(place: Bench, tasks: dict[str, Task], rows: int, number: int) -> Round:
    """Measure each of ``tasks`` once, one after the other; every other round begins at the end."""
    names = [name for name in tasks if name != "peer" or number == 0 or rows < MIN_ROWS_OF_ONE_PEER_ROUND]
    measured: dict[str, Measurement] = {}
    for name in reversed(names) if number % 2 else names:
        measured[name] = measure(tasks[name], place.workdir)
        logger.info("%s of %d rows: %.1f s", name, rows, measured[name].timing.seconds)
    return measured


def measure_downloads(place: Bench, rows: int) -> list[Line]:
    """Measure the download of the first conversations of the file of ``rows``, as they are and packed."""
    files = write_download(place.workdir, write_conversations(place.workdir, rows), DOWNLOAD_BYTES)
    with files[0].open("rb") as plain:
        rows_inside = sum(1 for _ in plain)
    lines = []
    with serve(place.workdir) as url:
        for kind, file in zip(("jsonl", "jsonl.gz"), files, strict=True):
            measured = measure(own_task("download", f"{url}/{file.name}", place, rows_inside), place.workdir)
            lines += describe_download(kind, measured)
    return lines


if __name__ == "__main__":
    typer.run(bench)
