"""Counting what tensors without values would take."""

import pytest
import torch

from osft.planning.tracking import AllocationTracker, AssumedValues, FusedAttention


def test_a_peak_counts_what_lives_at_once() -> None:
    tracker = AllocationTracker()

    with tracker, tracker.phase("work", "numbers"):
        for _ in range(3):
            torch.empty(100, device="meta")
        kept = torch.empty(50, device="meta")
        kept.view(5, 10).add_(1)

    assert tracker.peaks == {"work": {"numbers": 400}}


def test_what_is_assigned_is_counted_under_its_new_part() -> None:
    tracker = AllocationTracker()

    with tracker:
        with tracker.phase("loading", "anything"):
            weight = torch.empty(100, device="meta")
        tracker.assign("weights", [weight])
        with tracker.phase("work", "temporaries"):
            torch.empty(10, device="meta")

    assert {part: size for part, size in tracker.peaks["work"].items() if size} == {"weights": 400, "temporaries": 40}


def test_every_element_of_a_mask_counts() -> None:
    values = torch.empty(4, 5, 3, device="meta", requires_grad=True)
    mask = torch.empty(4, 5, dtype=torch.bool, device="meta")

    with AssumedValues():
        chosen = values[mask]
        chosen.sum().backward()
        positions = mask.nonzero()

    assert chosen.shape == (20, 3)
    assert positions.shape == (20, 2)
    assert values.grad is not None


def test_questions_about_values_are_answered_yes() -> None:
    tensor = torch.empty(3, device="meta")

    with AssumedValues():
        answers = [torch.equal(tensor, tensor), bool((tensor > 0).all()), tensor.sum().item()]

    assert answers == [True, True, 1.0]


def test_what_goes_to_the_host_keeps_its_shape_without_memory() -> None:
    with AssumedValues():
        on_host = torch.empty(1000, 1000, device="meta").cpu()
        back = on_host.to("meta")

    assert on_host.shape == back.shape == (1000, 1000)
    assert on_host.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_attention_counts_as_the_kernel_of_a_cpu_takes(key_value_heads: int) -> None:
    tracker = AllocationTracker()
    query = torch.empty(1, 4, 512, 16, device="meta", requires_grad=True)
    key = torch.empty(1, key_value_heads, 512, 16, device="meta", requires_grad=True)

    with tracker, tracker.phase("work", "all"), FusedAttention(with_dropout=True):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, key, is_causal=True, enable_gqa=key_value_heads < 4
        )

    assert output.shape == query.shape
    # The output and the sums of its rows; a matrix of all pairs alone has 4 x 512 x 512 values.
    assert sum(tracker.peaks["work"].values()) <= 2 * output.nbytes


@pytest.mark.parametrize(("with_dropout", "fused"), [(True, True), (False, False)])
def test_a_cpu_has_no_fused_kernel_with_dropout(with_dropout: bool, fused: bool) -> None:
    tracker = AllocationTracker()
    query = torch.empty(1, 4, 512, 16, device="meta")

    with tracker, tracker.phase("work", "all"), FusedAttention(with_dropout=with_dropout):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=0.1, is_causal=True)

    all_pairs_bytes = 4 * 4 * 512 * 512
    assert (sum(tracker.peaks["work"].values()) < all_pairs_bytes) == fused
