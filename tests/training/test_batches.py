"""Effective batches, their shares, and micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.config import TrainingConfig
from osft.data.samples import Integers, Sample, Samples, gather_samples
from osft.processes.group import Processes
from osft.training.batches import (
    MICRO_BATCH_COST_TOKENS,
    StepPlan,
    collate,
    count_steps,
    effective_batches,
    micro_batches,
    plan_epoch,
    shares_of_processes,
)

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40).map(lambda lengths: np.array(lengths, dtype=np.int64))


def make_sample(length: int, row: int = 1, ignored: int = 1) -> Sample:
    ids = np.arange(1, length + 1, dtype=np.int32)
    labels = ids.copy()
    labels[:ignored] = -100
    return Sample(input_ids=ids, labels=labels, row=row)


def make_samples(lengths: Integers) -> Samples:
    """Samples of which two tokens each, where they are long enough, are not trained."""
    return gather_samples(make_sample(int(length), row, ignored=2) for row, length in enumerate(lengths))


def plan(
    samples: Samples, *, world_size: int = 1, global_rank: int = 0, packed: bool = True, batch_size: int = 8
) -> list[StepPlan]:
    config = TrainingConfig(
        model_path="model", data_path="data", ckpt_output_dir="out", unfreeze_rank_ratio=0.5, learning_rate=1e-3,
        effective_batch_size=batch_size, max_tokens_per_gpu=64, max_seq_len=30,
    )  # fmt: skip
    processes = Processes(global_rank=global_rank, local_rank=global_rank, world_size=world_size)
    return list(plan_epoch(samples, config, processes, epoch=0, packed=packed))


@given(num_samples=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 100), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_sample_once_in_full_batches_but_for_the_last(
    num_samples: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = list(effective_batches(num_samples, batch_size, seed=seed, epoch=epoch))

    assert sorted(np.concatenate(batches).tolist()) == list(range(num_samples))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == count_steps(num_samples, batch_size, num_epochs=1)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(effective_batches(20, 4, seed=seed, epoch=epoch))).tolist()

    first = order(1, 0)

    assert first == order(1, 0)
    assert first != order(1, 1)
    assert first != order(2, 0)


def test_a_seed_gives_the_order_that_it_gave_in_earlier_releases() -> None:
    batches = effective_batches(7, 3, seed=42, epoch=1)

    assert [batch.tolist() for batch in batches] == [[0, 4, 6], [1, 2, 3], [5]]


@given(lengths=LENGTHS, world_size=st.integers(1, 5))
def test_the_shares_of_all_processes_are_the_whole_batch(lengths: Integers, world_size: int) -> None:
    shares = shares_of_processes(lengths, world_size)

    assert sorted(np.concatenate(shares).tolist()) == list(range(len(lengths)))


@given(lengths=LENGTHS, world_size=st.integers(1, 5))
def test_no_two_processes_are_further_apart_than_the_longest_sample(lengths: Integers, world_size: int) -> None:
    tokens = [lengths[share].sum() for share in shares_of_processes(lengths, world_size)]

    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize("packed", [True, False])
@given(lengths=LENGTHS, max_tokens=st.integers(30, 200))
def test_a_micro_batch_never_exceeds_the_token_budget_and_every_sample_is_in_one(
    lengths: Integers, max_tokens: int, packed: bool
) -> None:
    samples = make_samples(lengths)

    groups = micro_batches(lengths, max_tokens, packed=packed)

    batches = [collate([samples[index] for index in group], packed=packed) for group in groups]
    assert all(batch.input_ids.numel() <= max_tokens for batch in batches)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))


@given(lengths=LENGTHS, max_tokens=st.integers(30, 200))
def test_packed_micro_batches_are_few(lengths: Integers, max_tokens: int) -> None:
    groups = micro_batches(lengths, max_tokens, packed=True)

    assert len(groups) <= len(micro_batches(lengths, max_tokens, packed=False))
    # Two groups that are both half empty would be one.
    assert sum(lengths[group].sum() * 2 <= max_tokens for group in groups) <= 1


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=8).map(np.array), max_tokens=st.integers(4000, 12_000)
)
def test_padded_micro_batches_cost_least_of_all_ways_to_cut_the_sorted_samples(
    lengths: Integers, max_tokens: int
) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(int(lengths[group].max()) * len(group) + MICRO_BATCH_COST_TOKENS for group in groups)

    groups = micro_batches(lengths, max_tokens, packed=False)

    order = np.argsort(-lengths, kind="stable")
    cuts = ([place for place in range(1, len(order)) if bits >> place & 1] for bits in range(0, 1 << len(order), 2))
    ways = ([part.tolist() for part in np.split(order, places)] for places in cuts)
    allowed = (way for way in ways if all(lengths[part].max() * len(part) <= max_tokens for part in way))
    assert cost(groups) == min(cost(way) for way in allowed)


def test_a_short_sample_is_not_padded_to_a_much_longer_one() -> None:
    lengths = np.array([100, 2000, 90, 1900])

    groups = micro_batches(lengths, max_tokens=8192, packed=False)

    assert groups == [[1, 3], [0, 2]]


@pytest.mark.parametrize("packed", [True, False])
@given(lengths=LENGTHS, world_size=st.integers(1, 3))
def test_the_plans_of_all_processes_together_take_each_step_once(
    lengths: Integers, world_size: int, packed: bool
) -> None:
    samples = make_samples(lengths)

    plans = [plan(samples, world_size=world_size, global_rank=rank, packed=packed) for rank in range(world_size)]

    for steps in zip(*plans, strict=True):
        taken = np.concatenate([indices for step in steps for indices in step.micro_batches])
        assert all(np.array_equal(step.samples, steps[0].samples) for step in steps)
        assert sorted(taken.tolist()) == sorted(steps[0].samples.tolist())


@given(lengths=LENGTHS)
def test_a_step_counts_the_tokens_of_its_samples_and_the_trained_ones(lengths: Integers) -> None:
    samples = make_samples(lengths)

    steps = plan(samples)

    for step in steps:
        rows = [samples[index] for index in step.samples]
        assert step.tokens == sum(len(row.input_ids) for row in rows)
        assert step.loss_tokens == sum(int((row.labels[1:] != -100).sum()) for row in rows)


def test_a_plan_is_made_without_reading_a_token() -> None:
    samples = make_samples(np.arange(1, 31))
    without_tokens = replace(samples, blocks=())

    steps = plan(without_tokens)

    expected = plan(samples)
    assert [step.loss_tokens for step in steps] == [step.loss_tokens for step in expected]
    assert [len(step.micro_batches) for step in steps] == [len(step.micro_batches) for step in expected]


def test_a_packed_batch_is_one_row_whose_positions_restart() -> None:
    batch = collate([make_sample(3), make_sample(2, ignored=0)], packed=True)

    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2]]
    assert batch.labels.tolist() == [[-100, 2, 3, -100, 2]]
    assert batch.attention_mask is None
    assert batch.packing is not None
    assert batch.packing.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.packing.bounds.tolist() == [0, 3, 5]
    assert batch.packing.longest_tokens == 3


def test_padding_is_masked_and_not_trained() -> None:
    batch = collate([make_sample(3), make_sample(1, ignored=0)], packed=False)

    assert batch.input_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 2, 3], [-100, -100, -100]]
