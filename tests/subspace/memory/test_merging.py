"""Adding tasks to a memory is adding covariances, as far as a memory keeps them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from osft.subspace.memory.memory import GroupMemory
from osft.subspace.memory.merging import (
    MAX_SHARE,
    Spectrum,
    add_covariance,
    cut,
    largest_share,
    orthonormal,
    rank_of_share,
    reconstruct,
)

Covariance = Callable[..., Tensor]
CPU = torch.device("cpu")


def scaled(covariance: Tensor) -> Tensor:
    return covariance.double() / covariance.double().trace()


def remembered(*covariances: Tensor) -> GroupMemory:
    group = None
    for covariance in covariances:
        group = add_covariance(("q", "k"), covariance.clone(), group)
    assert group is not None
    return group


def test_a_first_task_is_kept_but_for_the_share_that_no_room_is_for(covariance: Covariance) -> None:
    group = remembered(100 * covariance(16, 0))

    assert group.trace == pytest.approx(1.0, abs=1e-6)
    assert 0 < group.residual <= 1 - MAX_SHARE
    # bfloat16 holds a direction to 2^-9 of each entry.
    assert (reconstruct(group, CPU) - scaled(covariance(16, 0))).norm() < 0.01


@pytest.mark.parametrize("tasks", [2, 10])
def test_tasks_add_up_to_the_sum_of_their_covariances_each_of_trace_1(covariance: Covariance, tasks: int) -> None:
    covariances = [10.0**seed * covariance(16, seed) for seed in range(tasks)]

    group = remembered(*covariances)

    exact = sum(scaled(each) for each in covariances)
    assert group.trace == pytest.approx(tasks, rel=1e-3)
    assert len(group.needed) == tasks
    # The rounding of each addition, and a thousandth of the trace that each leaves out.
    assert (reconstruct(group, CPU) - exact).norm() < 0.02 * tasks**0.5
    leading = torch.linalg.eigvalsh(exact).flip(0)[:8]
    assert torch.allclose(group.eigenvalues[:8].double(), leading, rtol=0.02)


def test_an_input_that_is_always_zero_is_remembered_as_nothing() -> None:
    group = remembered(torch.zeros(4, 4))

    assert (group.trace, group.needed) == (0.0, (1,))


def test_rounded_directions_are_orthonormal_again_and_in_their_order(covariance: Covariance) -> None:
    directions = remembered(covariance(16, 0)).directions

    exact = orthonormal(directions)

    assert torch.allclose(exact.T @ exact, torch.eye(exact.shape[1], dtype=torch.float64), atol=1e-12)
    assert ((exact * directions).sum(dim=0) > 0.99).all()


@given(
    eigenvalues=st.lists(st.floats(0, 1), min_size=1, max_size=20).map(lambda each: sorted(each, reverse=True)),
    share=st.floats(0, 1),
)
def test_the_rank_of_a_share_is_the_smallest_that_makes_it(eigenvalues: list[float], share: float) -> None:
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    trace = float(values.sum())

    rank = rank_of_share(values, trace, share)

    # Sums of 20 numbers below 1.
    assert float(values[:rank].sum()) >= share * trace - 1e-12
    assert rank == 1 or float(values[: rank - 1].sum()) < share * trace


@pytest.mark.parametrize("limit_bytes", [400, 1000, 10**6])
def test_all_groups_are_cut_to_one_share_that_fits(covariance: Covariance, limit_bytes: int) -> None:
    groups = [remembered(covariance(size, size)) for size in (8, 16, 24)]

    share = largest_share([Spectrum.of(group) for group in groups], limit_bytes)
    fitted = [cut(group, share) for group in groups]

    assert sum(group.size_bytes for group in fitted) <= limit_bytes
    for before, after in zip(groups, fitted, strict=True):
        assert after.trace == pytest.approx(before.trace, rel=1e-6)
        assert torch.equal(after.directions, before.directions[:, : after.rank])
        kept = float(after.eigenvalues[:-1].sum()) / after.trace
        assert kept < share
    if limit_bytes == 10**6:
        assert [group.rank for group in fitted] == [group.rank for group in groups]


def test_what_was_cut_stays_out_of_the_sum_and_in_the_trace(covariance: Covariance) -> None:
    first = cut(remembered(covariance(16, 0)), 0.8)

    group = add_covariance(("q", "k"), covariance(16, 1), first)

    assert group.trace == pytest.approx(2.0, abs=1e-3)
    assert group.residual >= first.residual > 0.1
