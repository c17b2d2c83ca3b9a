"""Covariances in rounds: each once, in bounded memory, over samples from everywhere."""

import operator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from osft.data.samples import Sample
from osft.subspace.inputs import covariances_at, equal_length_batches, input_places
from osft.subspace.memory.measuring import (
    BYTES_PER_VALUE,
    group_owners,
    measure_groups,
    round_bytes_within,
    rounds,
    spread_samples,
)
from osft.subspace.targets import find_targets


def make_samples(*lengths: int) -> list[Sample]:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 259, length, dtype=np.int32) for length in lengths]
    return [Sample(input_ids=ids, labels=ids, row=row) for row, ids in enumerate(texts, start=1)]


def test_each_group_has_the_covariance_of_all_its_weights(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    places = input_places(model, find_targets(model))
    samples = make_samples(9, 5, 9)
    expected = covariances_at(model, places, equal_length_batches(samples, 20))

    measured = list(measure_groups(model, places, samples, 20, operator.call))

    assert [number for number, _, _ in measured] == list(range(8))
    for _, group, covariance in measured:
        for name in group:
            # The same products in the same order.
            assert torch.equal(covariance, expected[name])


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), world_size=st.integers(1, 5))
def test_rounds_hold_every_group_once_within_the_bytes_of_each_process(sizes: list[int], world_size: int) -> None:
    owners, limit = group_owners(sizes, world_size), 3000 * BYTES_PER_VALUE

    found = rounds(sizes, owners, limit)

    assert [number for numbers in found for number in numbers] == list(range(len(sizes)))
    for numbers in found:
        for process in range(world_size):
            taken = [sizes[number] ** 2 for number in numbers if owners[number] == process]
            assert sum(taken) <= 3000


@given(count=st.integers(1, 30), world_size=st.integers(1, 5))
def test_groups_of_one_size_are_dealt_out_evenly(count: int, world_size: int) -> None:
    owners = group_owners([8, 24] * count, world_size)

    for size in (0, 1):
        shares = [owners[size::2].count(process) for process in range(world_size)]
        assert max(shares) - min(shares) <= 1


def test_an_8b_on_a_gpu_of_80_gb_is_measured_in_one_pass_and_on_one_that_is_nearly_full_in_rounds() -> None:
    inputs = [4096, 4096, 4096, 14336] * 32
    owners = group_owners(inputs, 1)

    # What is left beside the weights alone, after a training without save_memory, and beside little else.
    beside_weights, trained, nearly_full = (
        len(rounds(inputs, owners, round_bytes_within(free, 14336))) for free in (64 * 10**9, 46 * 10**9, 18 * 10**9)
    )

    assert (beside_weights, trained, nearly_full) == (1, 2, 6)


@pytest.mark.parametrize("free_bytes", [0, 2 * 10**9])
def test_a_gpu_that_is_full_is_asked_for_no_more_than_the_largest_covariance(free_bytes: int) -> None:
    assert round_bytes_within(free_bytes, 14336) == 14336**2 * BYTES_PER_VALUE


def test_what_a_round_leaves_free_is_enough_to_decompose_its_largest_covariance() -> None:
    free_bytes, inputs = 40 * 10**9, 14336

    left = free_bytes - round_bytes_within(free_bytes, inputs)

    assert left > 5 * 8 * inputs**2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_what_a_cpu_does(tiny_model: Path) -> None:
    on_cpu = AutoModelForCausalLM.from_pretrained(tiny_model)
    on_gpu = AutoModelForCausalLM.from_pretrained(tiny_model).to("cuda")
    places, samples = input_places(on_cpu, find_targets(on_cpu)), make_samples(9, 5, 9)

    cpu, gpu = (
        [covariance for _, _, covariance in measure_groups(model, places, samples, 20, operator.call)]
        for model in (on_cpu, on_gpu)
    )

    for expected, measured in zip(cpu, gpu, strict=True):
        # Of matrix products in another order, and in TF32 at worst.
        torch.testing.assert_close(measured.cpu(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_samples_are_taken_from_everywhere_within_the_tokens() -> None:
    samples = make_samples(*[10] * 100)

    chosen = spread_samples(samples, 55)

    assert [sample.row for sample in chosen] == [1, 26, 51, 75, 100]


def test_a_small_text_is_taken_whole_and_a_long_row_all_the_same() -> None:
    assert [sample.row for sample in spread_samples(make_samples(4, 5, 6), 100)] == [1, 2, 3]
    assert [sample.row for sample in spread_samples(make_samples(40), 10)] == [1]
