import torch
from hypothesis import given
from hypothesis import strategies as st

from osft.evaluation.models.batch_sizes import LARGEST_BATCH, BatchSizes, round_up

LENGTHS = st.lists(st.integers(1, 20_000), min_size=1, max_size=20)


class Device:
    """Holds so many tokens, and counts what was tried on it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tried: list[tuple[int, int]] = []

    def run(self, num_sequences: int, num_tokens: int) -> None:
        self.tried.append((num_sequences, num_tokens))
        if num_sequences * num_tokens > self.capacity:
            raise torch.OutOfMemoryError


@given(LENGTHS, st.integers(1, 2_000_000))
def test_batches_fit_or_are_single(lengths: list[int], capacity: int) -> None:
    sizes = BatchSizes(Device(capacity).run)

    for length in lengths:
        size = sizes.size_for(length)

        assert size == 1 or size * length <= capacity


@given(LENGTHS, st.integers(1, 2_000_000))
def test_batches_do_not_depend_on_what_ran_before(lengths: list[int], capacity: int) -> None:
    after_others = BatchSizes(Device(capacity).run)
    found = [after_others.size_for(length) for length in lengths]

    alone = [BatchSizes(Device(capacity).run).size_for(length) for length in lengths]

    assert found == alone


@given(st.integers(1, 1 << 20))
def test_lengths_are_rounded_up_to_a_power_of_two(length: int) -> None:
    rounded = round_up(length)

    assert length <= rounded < 2 * length
    assert rounded & (rounded - 1) == 0


def test_a_length_that_is_known_is_not_tried_again() -> None:
    device = Device(1000)
    sizes = BatchSizes(device.run)
    sizes.size_for(100)
    num_tried = len(device.tried)

    size = sizes.size_for(65)

    assert size == 4
    assert len(device.tried) == num_tried


def test_the_largest_batch_of_longer_requests_serves_shorter_ones() -> None:
    device = Device(LARGEST_BATCH * 1024)
    sizes = BatchSizes(device.run)
    sizes.size_for(1024)

    size = sizes.size_for(10)

    assert size == LARGEST_BATCH
    assert device.tried == [(LARGEST_BATCH, 1024)]


def test_on_a_cpu_batches_hold_a_fixed_number_of_tokens() -> None:
    sizes = BatchSizes(None)

    found = [sizes.size_for(length) for length in (1, 100, 1000, 100_000)]

    assert found == [LARGEST_BATCH, 32, 4, 1]
