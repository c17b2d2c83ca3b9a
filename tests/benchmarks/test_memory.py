"""What the benchmark counts as state, and what it watches while saving."""

import pytest
import torch

from benchmarks.memory import PeakMemory, SavingRun, count_osft_bytes, count_sft_bytes
from benchmarks.timing import TrainingRun
from benchmarks.workload import SMOKE_SHAPE, Workload

WORKLOAD = Workload(shape=SMOKE_SHAPE, device="cpu", threads=1, rows=2, tokens_per_row=16, unfreeze_rank_ratio=0.25)


def test_state_of_plain_fine_tuning_is_what_is_counted_for_it() -> None:
    run = TrainingRun(WORKLOAD, "sft")

    measured = run.take_step(1).state_bytes

    # Beside weights, gradients and moments there are AdamW's step numbers and the rotary frequencies.
    assert measured == pytest.approx(count_sft_bytes(SMOKE_SHAPE), rel=1e-3)


def test_saving_memory_is_counted_as_less() -> None:
    counted = count_osft_bytes(SMOKE_SHAPE, 0.25)

    assert counted[True] < counted[False] < count_sft_bytes(SMOKE_SHAPE)


def test_saving_writes_the_whole_model() -> None:
    values = count_sft_bytes(SMOKE_SHAPE) // 16

    peak = SavingRun(WORKLOAD).save(1)

    # The header comes to the four bytes of each value.
    assert peak.model_bytes == pytest.approx(4 * values, rel=0.02)


def test_memory_that_is_freed_again_counts_as_peak() -> None:
    num_bytes = 1 << 26

    with PeakMemory() as memory:
        for _ in range(5):
            torch.ones(num_bytes, dtype=torch.uint8)

    assert memory.extra_bytes > num_bytes // 2
