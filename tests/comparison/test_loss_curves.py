import math

from hypothesis import given
from hypothesis import strategies as st

from osft.comparison.compared_run import LossPoint
from osft.comparison.loss_curves import BLOCKS, color_of, dash_of, sparkline, thin

LOSSES = st.lists(st.floats(0, 20), max_size=50)


def points(losses: list[float]) -> list[LossPoint]:
    return [LossPoint(step=step, loss=loss) for step, loss in enumerate(losses, start=1)]


def test_a_line_of_blocks_falls_with_the_loss() -> None:
    assert sparkline(points([8.0, 4.0, 0.0]), 10, top=8.0) == "█▅▁"


def test_no_two_of_twenty_one_runs_are_drawn_alike() -> None:
    assert len({(color_of(place), dash_of(place)) for place in range(21)}) == 21


def test_a_loss_that_is_no_number_leaves_no_block() -> None:
    assert sparkline(points([8.0, math.nan, math.inf]), 10, top=8.0) == "█"


@given(LOSSES, st.integers(1, 20))
def test_a_thinned_curve_fits_ends_at_the_last_step_and_keeps_its_range(losses: list[float], most: int) -> None:
    thinned = thin(points(losses), most)

    assert len(thinned) <= most
    assert [point.step for point in thinned[-1:]] == [len(losses)] * bool(losses)
    slack = 1e-9
    assert all(min(losses) - slack <= point.loss <= max(losses) + slack for point in thinned)


@given(LOSSES.filter(bool))
def test_every_block_is_one_of_the_eight(losses: list[float]) -> None:
    line = sparkline(points(losses), 8, top=max(losses))

    assert set(line) <= set(BLOCKS)
    assert 0 < len(line) <= 8
