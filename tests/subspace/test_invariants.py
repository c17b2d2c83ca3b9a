"""What the method promises: a trained weight differs from its base only in the free directions."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions
from osft.subspace.parametrization import FreeSide, SubspaceLinear, SubspaceWeight

RATIOS = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]
# float32 holds the merged weight to 6e-8 of its size; over some hundred products 1e-5 leaves room without hiding a bug.
RELATIVE_TOLERANCE = 1e-5


def train_a_little(layer: SubspaceLinear, steps: int = 5) -> None:
    """Take AdamW steps that are large against the weight, so that rounding does not hide in a small update."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([layer.subspace.core], lr=0.05)
    for _ in range(steps):
        dtype = layer.weight.dtype
        inputs = torch.randn(7, layer.weight.shape[1], generator=generator).to(dtype)
        wanted = torch.randn(7, layer.weight.shape[0], generator=generator).to(dtype)
        (layer(inputs) - wanted).square().mean().backward()
        layer.subspace.project_gradient()
        optimizer.step()
        optimizer.zero_grad()
        layer.subspace.merge()


def make_linear(rows: int, columns: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows)


def make_layer(linear: nn.Linear, protected: ProtectedSubspace) -> SubspaceLinear:
    return SubspaceLinear(SubspaceWeight(linear.weight, protected), linear.bias)


def side_as_matrix(side: FreeSide) -> torch.Tensor:
    """Return the map from coordinates to the free directions of one side, ``[size, coordinates]``."""
    return side.expand(side.remove_protected(torch.eye(side.coordinates, dtype=side.basis.dtype)))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (12, 40), (40, 12), (1, 9), (9, 1), (1, 1)])
def test_training_leaves_the_leading_singular_directions_alone(rows: int, columns: int, ratio: float) -> None:
    linear = make_linear(rows, columns)
    before = linear.weight.detach().clone().double()
    layer = make_layer(linear, protect_leading_directions(linear.weight, ratio))

    train_a_little(layer)

    update = layer.weight.double() - before
    rank = frozen_rank(rows, columns, ratio)
    left, _, right = torch.linalg.svd(before, full_matrices=False)
    allowed = RELATIVE_TOLERANCE * update.norm()
    assert (left[:, :rank].T @ update).norm() <= allowed
    assert (update @ right[:rank].T).norm() <= allowed


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 24), columns=st.integers(1, 24), ratio=st.floats(0.01, 1), seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-3, 1.0, 1e3]), weight_rank=st.integers(0, 24),
)  # fmt: skip
def test_the_invariants_hold_for_any_shape_ratio_and_weight_of_any_rank(
    rows: int, columns: int, ratio: float, seed: int, scale: float, weight_rank: int
) -> None:
    linear = make_linear(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    low_rank = torch.randn(rows, weight_rank, generator=generator) @ torch.randn(
        weight_rank, columns, generator=generator
    )
    linear.weight.data = low_rank * scale
    protected = protect_leading_directions(linear.weight, ratio)
    layer = make_layer(linear, protected)
    torch.nn.init.normal_(layer.subspace.core, generator=generator)

    layer.subspace.merge()

    update = layer.weight.double() - layer.subspace.base.double()
    # The stored sum is rounded at the size of the larger of weight and update.
    allowed = RELATIVE_TOLERANCE * (update.norm() + layer.subspace.base.double().norm())
    assert (protected.left.T @ update).norm() <= allowed
    assert (update @ protected.right).norm() <= allowed


@pytest.mark.parametrize(("rows", "columns"), [(10, 10), (6, 15), (15, 6)])
def test_every_allowed_update_can_be_reached(rows: int, columns: int) -> None:
    linear = make_linear(rows, columns)
    protected = protect_leading_directions(linear.weight, 0.4)
    layer = make_layer(linear, protected)
    generator = torch.Generator().manual_seed(2)
    anything = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    allowed = anything - protected.left @ (protected.left.T @ anything)
    allowed = allowed - (allowed @ protected.right) @ protected.right.T

    left_basis, right_basis = (side_as_matrix(side).double() for side in (layer.subspace.left, layer.subspace.right))
    core = torch.linalg.pinv(left_basis) @ allowed @ torch.linalg.pinv(right_basis).T

    # The bases are float32.
    torch.testing.assert_close(left_basis @ core @ right_basis.T, allowed, atol=1e-5, rtol=0)


def test_a_subspace_of_any_source_is_respected_and_an_empty_side_is_free() -> None:
    linear = make_linear(8, 12)
    directions = torch.linalg.qr(torch.randn(12, 5, dtype=torch.float64)).Q
    nothing = torch.zeros(8, 0, dtype=torch.float64)
    layer = make_layer(linear, ProtectedSubspace(left=nothing, right=directions))

    train_a_little(layer)

    update = layer.weight.double() - layer.subspace.base.double()
    assert torch.linalg.matrix_rank(update, rtol=1e-5) == 7
    assert (update @ directions).norm() <= RELATIVE_TOLERANCE * update.norm()


def test_before_the_first_step_the_layer_is_the_linear_bit_for_bit() -> None:
    linear = make_linear(9, 14)
    inputs = torch.randn(3, 5, 14)
    expected = linear(inputs)

    layer = make_layer(copy.deepcopy(linear), protect_leading_directions(linear.weight, 0.25))
    layer.subspace.merge()

    assert torch.equal(layer(inputs), expected)


def test_at_ratio_zero_nothing_is_trained() -> None:
    linear = make_linear(10, 6)
    before = linear.weight.detach().clone()
    layer = make_layer(linear, protect_leading_directions(linear.weight, 0.0))

    train_a_little(layer)

    assert layer.subspace.core.numel() == 0
    assert torch.equal(layer.weight, before)


def test_at_ratio_one_every_direction_is_free() -> None:
    linear = make_linear(6, 9)
    layer = make_layer(linear, protect_leading_directions(linear.weight, 1.0))

    train_a_little(layer)

    update = layer.weight - layer.subspace.base
    assert torch.linalg.matrix_rank(update) == 6


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("rows", "columns"), [(10, 10), (6, 15), (15, 6)])
def test_the_gradient_is_that_of_the_loss_restricted_to_the_free_directions(
    rows: int, columns: int, ratio: float
) -> None:
    linear = make_linear(rows, columns).double()
    layer = make_layer(copy.deepcopy(linear), protect_leading_directions(linear.weight, ratio))
    inputs = torch.randn(4, 3, columns, dtype=torch.float64, requires_grad=True)
    inputs_of_layer = inputs.detach().clone().requires_grad_()

    linear(inputs).cos().sum().backward()
    layer(inputs_of_layer).cos().sum().backward()
    layer.subspace.project_gradient()

    # core -> W is linear, so its gradient is the adjoint applied to the dense gradient.
    left, right = side_as_matrix(layer.subspace.left), side_as_matrix(layer.subspace.right)
    expected = layer.subspace.scale.double() * (left.T @ linear.weight.grad @ right)
    gradient = layer.subspace.core.grad
    torch.testing.assert_close(torch.zeros_like(expected) if gradient is None else gradient, expected)
    torch.testing.assert_close(inputs_of_layer.grad, inputs.grad)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (32, 48), (48, 32)])
def test_training_in_bfloat16_keeps_the_invariants_to_the_rounding_of_what_is_stored(
    rows: int, columns: int, ratio: float
) -> None:
    linear = make_linear(rows, columns).bfloat16()
    before = linear.weight.detach().double()
    protected = protect_leading_directions(linear.weight, ratio)
    layer = make_layer(linear, protected)

    train_a_little(layer)

    update = layer.weight.double() - before
    # bfloat16 keeps 8 bits: each entry is off by at most 2^-9 of itself.
    rounding = 2**-9 * layer.weight.double().norm()
    assert layer.weight.dtype == torch.bfloat16
    assert (protected.left.T @ update).norm() <= rounding
    assert (update @ protected.right).norm() <= rounding


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), ratio=st.floats(0, 1))
def test_the_frozen_rank_is_what_the_design_says(rows: int, columns: int, ratio: float) -> None:
    rank = frozen_rank(rows, columns, ratio)

    full_rank = min(rows, columns)
    if ratio == 0:
        assert rank == full_rank
    else:
        assert rank == min(math.floor(full_rank * (1 - ratio) + 1e-9), full_rank - 1)


@pytest.mark.parametrize(
    ("size", "ratio", "rank"),
    [(2560, 0.9, 256), (20, 0.9, 2), (1000, 0.9, 100), (4096, 0.25, 3072), (10, 0.01, 9), (3, 1.0, 0), (7, 0.0, 7)],
)
def test_the_frozen_rank_in_numbers(size: int, ratio: float, rank: int) -> None:
    assert frozen_rank(size, 2 * size, ratio) == rank


def test_the_protected_directions_are_the_leading_ones_of_a_full_decomposition() -> None:
    weight = torch.randn(20, 33, dtype=torch.float64)

    protected = protect_leading_directions(weight, 0.3)

    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(protected.left @ protected.left.T, left[:, :14] @ left[:, :14].T)
    torch.testing.assert_close(protected.right @ protected.right.T, right[:14].T @ right[:14])
