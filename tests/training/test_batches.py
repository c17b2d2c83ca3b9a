"""Effective batches, their shares, and micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.data.samples import Sample
from osft.training.batches import (
    collate,
    count_loss_tokens,
    count_steps,
    effective_batches,
    micro_batches,
    share_of_process,
)


def make_sample(length: int, row: int = 1, ignored: int = 1) -> Sample:
    ids = np.arange(1, length + 1, dtype=np.int32)
    labels = ids.copy()
    labels[:ignored] = -100
    return Sample(input_ids=ids, labels=labels, row=row)


@given(num_samples=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 100), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_sample_once_in_full_batches_but_for_the_last(
    num_samples: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = list(effective_batches(num_samples, batch_size, seed=seed, epoch=epoch))

    assert sorted(index for batch in batches for index in batch) == list(range(num_samples))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == count_steps(num_samples, batch_size, num_epochs=1)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = list(effective_batches(20, 4, seed=1, epoch=0))

    assert first == list(effective_batches(20, 4, seed=1, epoch=0))
    assert first != list(effective_batches(20, 4, seed=1, epoch=1))
    assert first != list(effective_batches(20, 4, seed=2, epoch=0))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), world_size=st.integers(1, 5))
def test_the_shares_of_all_processes_are_the_whole_batch(lengths: list[int], world_size: int) -> None:
    samples = [make_sample(length, row) for row, length in enumerate(lengths)]

    shares = [share_of_process(samples, rank, world_size) for rank in range(world_size)]

    assert sorted(sample.row for share in shares for sample in share) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), world_size=st.integers(1, 5))
def test_no_two_processes_are_further_apart_than_the_longest_sample(lengths: list[int], world_size: int) -> None:
    samples = [make_sample(length, row) for row, length in enumerate(lengths)]

    tokens = [
        sum(len(sample.input_ids) for sample in share_of_process(samples, rank, world_size))
        for rank in range(world_size)
    ]

    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize("packed", [True, False])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), max_tokens=st.integers(30, 200))
def test_a_micro_batch_never_exceeds_the_token_budget_and_every_sample_is_in_one(
    lengths: list[int], max_tokens: int, packed: bool
) -> None:
    samples = [make_sample(length, row) for row, length in enumerate(lengths)]

    groups = micro_batches(samples, max_tokens, packed=packed)

    assert all(collate(group, packed=packed).input_ids.numel() <= max_tokens for group in groups)
    assert sorted(sample.row for group in groups for sample in group) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), max_tokens=st.integers(30, 200))
def test_packed_micro_batches_are_few(lengths: list[int], max_tokens: int) -> None:
    samples = [make_sample(length) for length in lengths]

    groups = micro_batches(samples, max_tokens, packed=True)

    assert len(groups) <= len(micro_batches(samples, max_tokens, packed=False))
    # Two groups that are both half empty would be one.
    assert sum(sum(len(sample.input_ids) for sample in group) * 2 <= max_tokens for group in groups) <= 1


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


@pytest.mark.parametrize(("ignored", "expected"), [(0, 4), (1, 4), (3, 2), (5, 0)])
def test_the_first_token_of_a_sample_is_never_counted_as_trained(ignored: int, expected: int) -> None:
    assert count_loss_tokens([make_sample(5, ignored=ignored)]) == expected
