import pytest

from osft.evaluation.models.placement import Placement, choose_placement

GIB = 1 << 30


@pytest.mark.parametrize(
    ("weights_gib", "gpus_gib", "expected"),
    [
        (1, [], Placement(devices=("cpu",))),
        (1, [80], Placement(devices=("cuda:0",))),
        (100, [80], Placement(devices=("cuda:0",))),
        (16, [80, 80], Placement(devices=("cuda:0", "cuda:1"))),
        (68, [80, 80], Placement(devices=("cuda:0", "cuda:1"))),
        (69, [80, 80], Placement(devices=("cuda",), is_spread=True)),
        (30, [80, 24], Placement(devices=("cuda",), is_spread=True)),
    ],
)
def test_model_is_copied_to_every_gpu_where_it_fits_and_spread_where_not(
    weights_gib: int, gpus_gib: list[int], expected: Placement
) -> None:
    placement = choose_placement(weights_gib * GIB, [size * GIB for size in gpus_gib])

    assert placement == expected
