"""The numbers of ``benchmarks/evaluation/``, each with its goal: what the jobs measured becomes results."""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.report import Origin, Result

Measured = Mapping[str, Sequence[float]]

OVERHEAD_GOAL = 1.05
KNOWN_GOAL_SECONDS = 2.0
MEMORY_GOAL = 1.1


def describe_overhead(origin: Origin, measured: Measured) -> list[Result]:
    """Return what our evaluation takes over plain lm-eval: the median of ratios of times taken side by side."""
    ratio = median(ours / plain for ours, plain in zip(measured["ours"], measured["plain"], strict=True))
    what = f"{measured['documents'][0]:,.0f} documents, wall time"
    return [
        origin.result(f"evaluation / plain lm-eval, {what}", ratio, OVERHEAD_GOAL),
        origin.result(f"plain lm-eval, {what} in s", median(measured["plain"])),
        origin.result(f"evaluation, {what} in s", median(measured["ours"])),
    ]


def describe_known(origin: Origin, measured: Measured, *, prompt_bytes: float, model_bytes: int) -> list[Result]:
    """Return what a known base model takes; loading the tasks is counted beside it, the tuned model needs it too."""
    what = (
        f"known base model of {model_bytes / 1e6:,.0f} MB, {measured['documents'][0]:,.0f} documents "
        f"of {prompt_bytes:,.0f} bytes"
    )
    return [
        origin.result(f"{what}, s", measured["measure_seconds"][0], KNOWN_GOAL_SECONDS),
        origin.result("finding the model, s", measured["find_seconds"][0]),
        origin.result("loading the tasks, s", measured["load_seconds"][0]),
    ]


def describe_memory(origin: Origin, of_one: Measured, of_two: Measured) -> list[Result]:
    """Return the peak memory of evaluating two models, over that of one."""
    one_bytes, two_bytes = of_one["peak_bytes"][0], of_two["peak_bytes"][0]
    return [
        origin.result("peak memory of evaluating two models / of one", two_bytes / one_bytes, MEMORY_GOAL),
        origin.result("peak memory of evaluating one model in bytes", one_bytes),
    ]


def describe_statistics(origin: Origin, measured: Measured, *, tasks: int, documents: int) -> list[Result]:
    """Return what the comparison of two models takes."""
    what = f"statistics of {tasks} tasks, {documents:,} documents"
    return [
        origin.result(f"{what}, right-or-wrong scores, s", median(measured["right_or_wrong"])),
        origin.result(f"{what}, other scores, s", median(measured["shares"])),
    ]
