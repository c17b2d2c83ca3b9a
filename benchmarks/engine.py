"""Measure the engine beside plain fine-tuning and its peers: ``make bench-engine``, or ``python -m benchmarks.engine``.

Prints tables and writes ``benchmarks/results/engine-<date>.json``. What is measured and how to read it is in
``benchmarks/README.md``.
"""

import datetime
import logging
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.memory import count_osft_bytes, count_sft_bytes, prepare_saves
from benchmarks.report import (
    Origin,
    Result,
    describe_machine,
    median_ratio,
    print_results,
    print_steps,
    write_results,
)
from benchmarks.timing import DECOMPOSITIONS, DecompositionTime, StepTime, prepare_decompositions, prepare_steps
from benchmarks.variants import Variant, choose_variants
from benchmarks.worker import DoesNotFitError, Worker
from benchmarks.workload import GPU_SHAPES, Shape, Workload, choose_shapes
from osft.errors import TrainingError
from osft.logs import configure_logging

logger = logging.getLogger("osft.benchmarks")

RESULTS = Path(__file__).parent / "results"
# Of the step time of "osft" to that of another variant; SFT's differs by device.
STEP_GOALS = {"mini-trainer": 0.62, "frozen": 1.15}
SFT_STEP_GOALS = {"cpu": 0.88, "cuda": 0.90}
DECOMPOSITION_GOAL = 0.35
CACHED_DECOMPOSITIONS_GOAL = 0
STATE_GOAL = 0.40
# No second copy of the model: a whole one would be 1. What a stream needs at once is one tensor, or one block's.
SAVING_GOAL = 0.5
# Steps of many micro-batches take minutes: only the variants that a goal names take them.
LONG_STEP_VARIANTS = ("osft", "sft", *STEP_GOALS)
# float32 sums in another order; the peer's weights are products of their factors.
SAME_LOSS_TOLERANCE = 1e-3
CPU_ROWS, CPU_TOKENS_PER_ROW = 4, 512
GPU_ROWS, GPU_TOKENS_PER_ROW = 4, 2048

StepTimes = dict[tuple[str, int], list[StepTime]]


def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Times that every variant is measured.")] = 5,
    micro_batches: Annotated[int, typer.Option(min=1, help="Micro-batches of a long step.")] = 8,
    shape: Annotated[list[str] | None, typer.Option(help="Shape of model; may be repeated.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Way to train; may be repeated.")] = None,
    unfreeze_rank_ratio: Annotated[float, typer.Option(help="Share of singular directions that OSFT trains.")] = 0.25,
    tokens_per_row: Annotated[int | None, typer.Option(help="Length of a sample; a micro-batch has four.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a process.")] = 2,
    output: Annotated[Path | None, typer.Option(help="File to write instead of results/engine-<date>.json.")] = None,
) -> None:
    """Measure the engine beside plain fine-tuning and its peers."""
    configure_logging()
    on_gpu = torch.cuda.is_available()
    shapes, variants = choose_shapes(shape or [], on_gpu=on_gpu), choose_variants(variant or [])
    command = shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]])
    origin = Origin(machine=describe_machine(on_gpu=on_gpu, threads=threads), command=command)
    path = output or RESULTS / f"engine-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.json"
    console = Console()
    in_tables: list[Result] = []
    results: list[Result] = []
    for each in shapes:
        workload = Workload(
            shape=each,
            device="cuda" if on_gpu else "cpu",
            threads=threads,
            rows=GPU_ROWS if on_gpu else CPU_ROWS,
            tokens_per_row=tokens_per_row or (GPU_TOKENS_PER_ROW if on_gpu else CPU_TOKENS_PER_ROW),
            unfreeze_rank_ratio=unfreeze_rank_ratio,
        )
        times = measure_steps(workload, variants, rounds=rounds, micro_batches=micro_batches)
        print_steps(console, each.name, times, micro_batches)
        in_tables += list_steps(origin, workload, times)
        results += compare_steps(origin, workload, times, [each.name for each in variants], micro_batches)
        results += measure_decompositions(origin, workload, rounds=rounds)
        # It is about the host's memory; for a GPU's shapes the whole model would be decomposed once more.
        results += [] if on_gpu else measure_saving(origin, workload)
        # After each shape: a peer that fails at the next one does not take these along.
        write_results(path, [*results, *in_tables])
    results += count_states(origin, shapes, unfreeze_rank_ratio)
    print_results(console, results)
    write_results(path, [*results, *in_tables])
    logger.info("wrote %s", path.name)


def measure_steps(workload: Workload, variants: Sequence[Variant], *, rounds: int, micro_batches: int) -> StepTimes:
    """Return the times of every variant, by its name and the micro-batches of a step.

    On a CPU, whose speed drifts with what its neighbours do, the variants take turns. A GPU holds one model at a
    time, and its speed is steady.
    """
    groups = [[variant] for variant in variants] if workload.on_gpu else [list(variants)]
    times: StepTimes = {}
    for group in groups:
        names = [variant.name for variant in group]
        try:
            times |= _measure_steps_in_turns(workload, names, rounds=rounds, micro_batches=micro_batches)
        except DoesNotFitError as error:
            logger.warning("%s: %s does not fit (%s)", workload.shape.name, ", ".join(names), error)
    return times


def _measure_steps_in_turns(
    workload: Workload, names: Sequence[str], *, rounds: int, micro_batches: int
) -> dict[tuple[str, int], list[StepTime]]:
    times: StepTimes = defaultdict(list)
    with ExitStack() as stack:
        workers: dict[str, Worker[StepTime]] = {}
        for name in names:
            logger.info("%s: preparing %s", workload.shape.name, name)
            workers[name] = stack.enter_context(Worker(name, partial(prepare_steps, workload, name)))
        _check_same_loss({name: worker.measure(1).loss for name, worker in workers.items()}, workload)
        plan = {1: list(names)}
        if micro_batches > 1:
            plan[micro_batches] = [name for name in names if name in LONG_STEP_VARIANTS]
        for amount, chosen in plan.items():
            for number in range(rounds):
                logger.info(
                    "%s: %d micro-batches a step, round %d of %d", workload.shape.name, amount, number + 1, rounds
                )
                for name in chosen:
                    times[name, amount].append(workers[name].measure(amount))
    return dict(times)


def _check_same_loss(losses: dict[str, float], workload: Workload) -> None:
    """Refuse to compare variants that do not train the same model on the same data."""
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        # On a GPU the variants start from weights of two precisions.
        if not workload.on_gpu and abs(loss - first) > SAME_LOSS_TOLERANCE * abs(first):
            raise TrainingError(
                f"{workload.shape.name}: '{name}' starts with loss {loss}, another variant with {first}. "
                "Mend the variant: all must train the same model on the same data."
            )


def compare_steps(
    origin: Origin, workload: Workload, times: StepTimes, names: Sequence[str], micro_batches: int
) -> list[Result]:
    """Return our step time beside that of the other variants ``names``; the goals hold for steps of many micro-batches.

    A variant that does not fit into the GPU's memory has no times, and its ratio no value.
    """
    goals = {"sft": SFT_STEP_GOALS[workload.device], **STEP_GOALS}
    others = [name for name in names if name != "osft"] if "osft" in names else []
    return [
        origin.result(
            f"step time / {name}'s, {workload.shape.name}, {amount} a step",
            _ratio_if_both(times.get(("osft", amount)), times.get((name, amount))),
            goals.get(name) if amount == micro_batches else None,
        )
        for amount in dict.fromkeys((1, micro_batches))
        for name in others
        if amount == 1 or name in LONG_STEP_VARIANTS
    ]


def _ratio_if_both(own: list[StepTime] | None, other: list[StepTime] | None) -> float | None:
    return median_ratio(own, other) if own and other else None


def list_steps(origin: Origin, workload: Workload, times: StepTimes) -> list[Result]:
    """Return what the table of steps shows, one number a result."""
    results = []
    for (name, amount), steps in times.items():
        place = f"{name}, {workload.shape.name}, {amount} a step"
        results.append(origin.result(f"step time in seconds, {place}", median(step.seconds for step in steps)))
        update = median(step.update_seconds for step in steps)
        results.append(origin.result(f"of it once a step in seconds, {place}", update))
        if amount == 1:
            place = f"{name}, {workload.shape.name}"
            results.append(origin.result(f"preparation in seconds, {place}", steps[-1].prepare_seconds))
            results.append(origin.result(f"weights and trainable state in bytes, {place}", steps[-1].state_bytes))
    return results


def measure_decompositions(origin: Origin, workload: Workload, *, rounds: int) -> list[Result]:
    """Return how long the weights of one block take to decompose, computed and cached, beside the peer's SVD."""
    name = workload.shape.name
    logger.info("%s: decomposing", name)
    prepares = {method: partial(prepare_decompositions, workload, method) for method in DECOMPOSITIONS}
    times = _take_turns(prepares, rounds=rounds)
    peer = times["mini-trainer"]

    def ratio(method: str) -> float:
        return median(own.seconds / other.seconds for own, other in zip(times[method], peer, strict=True))

    return [
        origin.result(f"decomposition time / mini-trainer's, {name}", ratio("osft"), DECOMPOSITION_GOAL),
        origin.result(
            f"decompositions computed with a filled cache, {name}",
            max(time.computed for time in times["osft-cached"]),
            CACHED_DECOMPOSITIONS_GOAL,
        ),
        origin.result(f"reading the cache / mini-trainer's decomposition time, {name}", ratio("osft-cached")),
        *(
            origin.result(
                f"decomposition of one block by {method} in seconds, {name}", median(time.seconds for time in taken)
            )
            for method, taken in times.items()
        ),
    ]


def _take_turns(
    prepares: Mapping[str, Callable[[], Callable[[int], DecompositionTime]]], *, rounds: int
) -> dict[str, list[DecompositionTime]]:
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, prepare)) for name, prepare in prepares.items()}
        for worker in workers.values():
            worker.measure(1)
        turns = [{name: worker.measure(1) for name, worker in workers.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in prepares}


def measure_saving(origin: Origin, workload: Workload) -> list[Result]:
    """Return the memory that saving takes beyond the model."""
    logger.info("%s: saving", workload.shape.name)
    with Worker("saving", partial(prepare_saves, workload)) as worker:
        worker.measure(1)
        peak = worker.measure(1)
    value = peak.extra_bytes / peak.model_bytes
    return [origin.result(f"extra memory of saving / the model's bytes, {workload.shape.name}", value, SAVING_GOAL)]


def count_states(origin: Origin, shapes: Sequence[Shape], unfreeze_rank_ratio: float) -> list[Result]:
    """Return the bytes of weights and training state on a GPU beside plain fine-tuning's; counted, not run."""
    results = []
    for shape in dict.fromkeys((*shapes, *GPU_SHAPES)):
        logger.info("%s: counting bytes", shape.name)
        sft_bytes = count_sft_bytes(shape)
        for save_memory, own_bytes in count_osft_bytes(shape, unfreeze_rank_ratio).items():
            place = f"{shape.name}, save_memory={save_memory}, counted"
            results.append(origin.result(f"weights and trainable state in bytes, {place}", own_bytes))
            metric = f"weights and trainable state / SFT's bytes, {place}"
            results.append(origin.result(metric, own_bytes / sft_bytes, STATE_GOAL))
    return results


if __name__ == "__main__":
    typer.run(bench)
