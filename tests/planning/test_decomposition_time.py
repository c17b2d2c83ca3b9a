"""The time of a decomposition, from a small one."""

import pytest
import torch

from osft.planning.decomposition_time import count_operations, estimate_seconds


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_operations_grow_with_the_cube_of_the_size(ratio: float) -> None:
    small, large = count_operations(512, 512, ratio), count_operations(1024, 1024, ratio)

    assert large == pytest.approx(8 * small, rel=0.01)


def test_rows_and_columns_may_change_places() -> None:
    assert count_operations(256, 1024, 0.25) == count_operations(1024, 256, 0.25)


def test_more_matrices_take_longer() -> None:
    device = torch.device("cpu")

    # Each call measures the machine anew; ten times the work is more than its noise.
    assert estimate_seconds([(512, 512)] * 10, 0.25, device) > estimate_seconds([(512, 512)], 0.25, device) > 0
