"""Results of sequences as a file and as tables."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median

import orjson
from rich.table import Table

from benchmarks.sequences.sequence import SequenceResult
from osft.workspace import atomic_file


def read_results(path: Path) -> list[SequenceResult]:
    """Return what earlier runs wrote; nothing if there is no file."""
    if not path.is_file():
        return []
    return [SequenceResult.from_json(record) for record in orjson.loads(path.read_bytes())["sequences"]]


def write_results(path: Path, results: Sequence[SequenceResult], machine: str) -> None:
    """Write all results, so that a run that is stopped loses one sequence at most."""
    record = {"machine": machine, "sequences": [result.to_json() for result in results]}
    with atomic_file(path) as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def summary_table(results: Iterable[SequenceResult]) -> Table:
    """Return a row for each architecture, number of tasks and method: medians over the seeds, and their range."""
    table = Table(title="medians over the seeds (smallest to largest), percent")
    for column in ("base model", "tasks", "method", "seeds"):
        table.add_column(column)
    for column in ("average accuracy", "backward transfer", "base forgotten", "least learnt", "memory kB", "s a task"):
        table.add_column(column, justify="right")
    for (architecture, number, method), group in _by_method(results).items():
        table.add_row(
            architecture,
            str(number),
            method,
            str(len(group)),
            _spread(group, lambda result: 100 * result.average_accuracy),
            _spread(group, lambda result: 100 * result.backward_transfer),
            _spread(group, lambda result: 100 * result.base_forgetting),
            f"{100 * min(result.least_learnt for result in group):.0f}",
            f"{median(result.memory_bytes[-1] for result in group) / 1e3:.0f}" if group[0].memory_bytes else "",
            f"{median(mean(result.seconds) for result in group):.0f}",
        )
    return table


def accuracy_matrix(results: Sequence[SequenceResult]) -> Table:
    """Return the accuracy matrix of one method, mean over its sequences; tasks by their place in the order."""
    first = results[0]
    number = len(first.tasks)
    table = Table(title=f"{first.method}, {first.architecture}: right after each task, mean of {len(results)} seeds")
    table.add_column("learnt")
    table.add_column("base", justify="right")
    for task in range(number):
        table.add_column(str(task + 1), justify="right")
    for learnt in range(number):
        scores = [mean(result.matrix[learnt][task] for result in results) for task in range(learnt + 1)]
        base = mean(result.base[learnt + 1] for result in results)
        table.add_row(str(learnt + 1), f"{100 * base:.1f}", *(f"{100 * score:.0f}" for score in scores))
    return table


def _by_method(results: Iterable[SequenceResult]) -> dict[tuple[str, int, str], list[SequenceResult]]:
    groups: dict[tuple[str, int, str], list[SequenceResult]] = defaultdict(list)
    for result in results:
        groups[result.architecture, len(result.tasks), result.method].append(result)
    return groups


def _spread(results: Sequence[SequenceResult], value: Callable[[SequenceResult], float]) -> str:
    values = [value(result) for result in results]
    middle = f"{median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"
