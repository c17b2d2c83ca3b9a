"""Measure the forgetting evaluation: ``make bench-evaluation``, or ``python -m benchmarks.evaluation``.

Prints tables and writes ``benchmarks/results/evaluation-<date>.json``. What is measured and how to read it is in
``benchmarks/README.md``.
"""

import datetime
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.data.worker import ROOT
from benchmarks.evaluation.material import SCALES, Material, write_material
from benchmarks.evaluation.report import describe_known, describe_memory, describe_overhead, describe_statistics
from benchmarks.evaluation.worker import run_job
from benchmarks.report import Origin, Result, describe_machine, print_results, write_results
from osft.logs import configure_logging

logger = logging.getLogger("osft.benchmarks")

RESULTS = ROOT / "benchmarks" / "results"
# The goals are for so many; on a larger machine the others are left alone.
CORES = 2
# The first fills the cache that the second reads.
JOB_NAMES = ("fill", "known", "memory-of-one", "memory-of-two", "statistics", "overhead")


def bench(
    scale: Annotated[str, typer.Option(help=f"Size of models and tasks: {', '.join(SCALES)}.")] = "full",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each side of a ratio is measured.")] = 3,
    workdir: Annotated[Path, typer.Option(help="Folder for models and tasks, kept for another run.")] = Path(
        "build/bench-evaluation"
    ),
    output: Annotated[
        Path | None, typer.Option(help="File to write instead of results/evaluation-<date>.json.")
    ] = None,
) -> None:
    """Measure the evaluation beside plain lm-eval, a known base model, memory, and the statistics."""
    configure_logging()
    # All that is started from here stays on these cores too.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    command = shlex.join(["python", "-m", "benchmarks.evaluation", *sys.argv[1:]])
    origin = Origin(machine=describe_machine(on_gpu=False, threads=CORES), command=command)
    path = output or RESULTS / f"evaluation-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.json"
    material = write_material(workdir.resolve(), scale)
    measured = {}
    for job in JOB_NAMES:
        logger.info("measuring: %s", job)
        measured[job] = run_job(job, material, scale, rounds=rounds, threads=CORES)
    results = describe_all(origin, material, scale, measured)
    write_results(path, results)
    print_results(Console(), results)
    logger.info("wrote %s", path.name)


def describe_all(
    origin: Origin, material: Material, scale_name: str, measured: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[Result]:
    """Return what is reported of the jobs' measurements, by name of the job."""
    scale = SCALES[scale_name]
    return [
        *describe_overhead(origin, measured["overhead"]),
        *describe_known(
            origin,
            measured["known"],
            prompt_bytes=measured["fill"]["prompt_bytes"][0],
            model_bytes=sum(file.stat().st_size for file in material.base.glob("*.safetensors")),
        ),
        *describe_memory(origin, measured["memory-of-one"], measured["memory-of-two"]),
        *describe_statistics(
            origin, measured["statistics"], tasks=scale.known_tasks, documents=scale.known_tasks * scale.known_documents
        ),
    ]


if __name__ == "__main__":
    typer.run(bench)
