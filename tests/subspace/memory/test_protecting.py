"""What a memory protects of a weight: its own directions first, then the weight's."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osft.subspace.decomposition import frozen_rank
from osft.subspace.memory.memory import GroupMemory
from osft.subspace.memory.merging import add_covariance
from osft.subspace.memory.protecting import protect_memory

MakeGroup = Callable[..., GroupMemory]


@given(
    outputs=st.integers(1, 20), inputs=st.integers(1, 20), tokens=st.integers(1, 30), ratio=st.floats(0, 1),
    inputs_are_columns=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_as_many_orthonormal_directions_of_the_inputs_as_the_ratio_leaves_and_none_of_the_outputs(
    outputs: int, inputs: int, tokens: int, ratio: float, inputs_are_columns: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs) if inputs_are_columns else (inputs, outputs), generator=generator)
    rows = torch.randn(tokens, inputs, generator=generator)
    group = add_covariance(("q",), rows.T @ rows, None)

    protected = protect_memory(weight, group, ratio, inputs_are_columns=inputs_are_columns)

    of_inputs, of_outputs = protected.right, protected.left
    if not inputs_are_columns:
        of_inputs, of_outputs = of_outputs, of_inputs
    assert of_outputs.shape == (outputs, 0)
    assert of_inputs.shape == (inputs, frozen_rank(inputs, inputs, ratio))
    # float32 directions of up to 20 values.
    assert torch.allclose(of_inputs.T @ of_inputs, torch.eye(of_inputs.shape[1]), atol=1e-6)


def test_the_most_used_directions_come_first_where_there_is_no_room_for_all(group_of: MakeGroup) -> None:
    group = group_of(torch.eye(6)[:, [4, 1, 5, 0]], [0.5, 0.3, 0.1, 0.1])

    protected = protect_memory(torch.randn(3, 6), group, 0.6, inputs_are_columns=True)

    assert torch.equal((protected.right**2).sum(dim=1), torch.tensor([0.0, 1, 0, 0, 1, 0]))


@pytest.mark.parametrize("inputs_are_columns", [True, False])
@pytest.mark.parametrize("outputs", [2, 9])
def test_what_the_memory_leaves_of_the_room_goes_to_the_weights_own_leading_directions(
    group_of: MakeGroup, outputs: int, inputs_are_columns: bool
) -> None:
    group = group_of(torch.eye(6)[:, [4]], [1.0])
    weight = torch.zeros(outputs, 6)
    # The strongest of the weight is the memory's already.
    weight[0, 4], weight[1, 2], weight[0, 5] = 9.0, 3.0, 2.0

    protected = protect_memory(
        weight if inputs_are_columns else weight.T, group, 0.5, inputs_are_columns=inputs_are_columns
    )

    side = protected.right if inputs_are_columns else protected.left
    assert torch.allclose((side**2).sum(dim=1), torch.tensor([0.0, 0, 1, 0, 1, 1]), atol=1e-6)


def test_rounding_of_the_memory_does_not_show_in_the_directions(group_of: MakeGroup) -> None:
    exact = torch.linalg.qr(torch.randn(40, 20, generator=torch.Generator().manual_seed(0))).Q

    protected = protect_memory(torch.randn(8, 40), group_of(exact, [0.05] * 20), 0.5, inputs_are_columns=True)

    assert torch.allclose(protected.right.T @ protected.right, torch.eye(20), atol=1e-6)
    # bfloat16 holds a direction to 2^-9 of each entry.
    assert torch.linalg.svdvals(exact.T @ protected.right).min() > 0.999
