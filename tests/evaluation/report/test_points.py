import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.evaluation.report.points import MINUS, format_bound, format_ceiling, format_points


@pytest.mark.parametrize(
    ("share", "text"), [(0.05, "+5.0"), (-0.05, f"{MINUS}5.0"), (0.0, "0.0"), (-0.0004, "0.0"), (-0.0, "0.0")]
)
def test_a_zero_has_no_sign(share: float, text: str) -> None:
    assert format_points(share, signed=True) == text


@pytest.mark.parametrize(
    ("share", "text", "signed"),
    [
        (10.0, "1,000.0", "+1,000.0"),
        (1.4e14, "more than 1,000", "more than +1,000"),
        (-1e300, f"less than {MINUS}1,000", f"less than {MINUS}1,000"),
        (float("inf"), "more than 1,000", "more than +1,000"),
    ],
)
def test_a_share_beyond_ten_times_the_score_is_not_written_in_digits(share: float, text: str, signed: str) -> None:
    assert format_points(share) == text
    assert format_points(share, signed=True) == signed


@given(st.floats(allow_nan=False), st.booleans())
def test_every_share_fits_a_narrow_cell(share: float, signed: bool) -> None:
    assert len(format_points(share, signed=signed)) <= len("more than +1,000")


def test_a_bound_that_is_not_written_in_digits_bounds_nothing() -> None:
    assert format_bound(0.0316) == "at most 3.2 with 95% confidence"
    assert format_bound(1e14) == "no bound below 1,000 with 95% confidence"
    assert format_ceiling(0.474) == "up to 47.4"
    assert format_ceiling(1e14) == "more than 1,000"
