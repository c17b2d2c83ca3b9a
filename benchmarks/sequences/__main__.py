"""``python -m benchmarks.sequences``: learn domains one after the other with every method, and say what is left.

A run goes on where the last one stopped: sequences that are in the output file already are not done again.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.report import describe_machine
from benchmarks.sequences.bases import Architecture, base_model_folder
from benchmarks.sequences.methods import list_methods
from benchmarks.sequences.sequence import SequenceResult, run_sequence
from benchmarks.sequences.tables import accuracy_matrix, read_results, summary_table, write_results

RESULTS = Path(__file__).parents[1] / "results"
CACHE = Path("build") / "sequences"


def main(
    tasks: Annotated[int, typer.Option(min=1, max=10, help="Tasks of a sequence.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Sequences of each method.")] = 3,
    architecture: Annotated[
        list[Architecture] | None, typer.Option(help="Base models; all of them by default.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods by name; all by default.")] = None,
    max_epochs: Annotated[int, typer.Option(min=1, help="Most passes over a task's rows.")] = 40,
    output: Annotated[Path | None, typer.Option(help="File of the results.")] = None,
    cache: Annotated[Path, typer.Option(help="Where trained base models are kept.")] = CACHE,
) -> None:
    """Measure what is left of tasks that were learnt one after the other."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    torch.set_num_threads(1)
    output = output or RESULTS / f"sequences-{time.strftime('%Y-%m-%d')}.json"
    chosen = choose_methods(method)
    results = read_results(output)
    # Seeds outermost: a run that is stopped has all methods for the seeds that it reached.
    for seed in range(seeds):
        for name in architecture or Architecture:
            folder, methods = base_model_folder(name, cache), list_methods(name)
            for each in (methods[one] for one in chosen):
                if not is_done(results, name, each.name, tasks, seed):
                    results.append(run_sequence(name, folder, each, num_tasks=tasks, seed=seed, max_epochs=max_epochs))
                    write_results(output, results, describe_machine(on_gpu=False, threads=1))
    show(results)


def choose_methods(names: Sequence[str] | None) -> list[str]:
    """Return the names of methods that were given; all of them if none was.

    Raises:
        typer.BadParameter: if there is none of such a name.
    """
    methods = list_methods(Architecture.DEMO)
    unknown = sorted(set(names or ()) - methods.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(methods)}.")
    return list(names or methods)


def is_done(results: Sequence[SequenceResult], architecture: str, method: str, tasks: int, seed: int) -> bool:
    """Return whether a sequence is among ``results``."""
    wanted = (architecture, method, tasks, seed)
    return any((each.architecture, each.method, len(each.tasks), each.seed) == wanted for each in results)


def show(results: Sequence[SequenceResult]) -> None:
    """Print the summary, and the accuracy matrix of each method."""
    console = Console()
    console.print(summary_table(results))
    keys = dict.fromkeys((each.architecture, len(each.tasks), each.method) for each in results)
    for key in keys:
        console.print(
            accuracy_matrix([each for each in results if (each.architecture, len(each.tasks), each.method) == key])
        )


if __name__ == "__main__":
    typer.run(main)
