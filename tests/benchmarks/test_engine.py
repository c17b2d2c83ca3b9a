"""Which step times have goals."""

from benchmarks.engine import compare_steps
from benchmarks.report import Origin
from benchmarks.timing import StepTime
from benchmarks.workload import SMOKE_SHAPE, Workload

WORKLOAD = Workload(shape=SMOKE_SHAPE, device="cpu", threads=1, rows=2, tokens_per_row=16, unfreeze_rank_ratio=0.25)
ORIGIN = Origin(machine="a machine", command="a command")


def step_time(seconds: float) -> StepTime:
    return StepTime(
        micro_batches=1, loss=1.0, accumulate_seconds=seconds, update_seconds=0.0, prepare_seconds=0.0, state_bytes=0,
        peak_bytes=None,
    )  # fmt: skip


def test_goals_hold_for_long_steps_alone() -> None:
    times = {(name, amount): [step_time(1.0)] for name in ("sft", "osft") for amount in (1, 8)}

    short, long = compare_steps(ORIGIN, WORKLOAD, times, ["sft", "osft"], micro_batches=8)

    assert (short.value, short.goal, short.met) == (1.0, None, None)
    assert (long.value, long.goal, long.met) == (1.0, 0.88, False)


def test_a_variant_that_does_not_fit_misses_its_goal_and_is_not_left_out() -> None:
    times = {("osft", amount): [step_time(1.0)] for amount in (1, 8)}

    _, long = compare_steps(ORIGIN, WORKLOAD, times, ["sft", "osft"], micro_batches=8)

    assert (long.metric, long.value, long.met) == ("step time / sft's, smoke, 8 a step", None, False)
