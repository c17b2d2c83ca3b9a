import math
from datetime import UTC, datetime
from typing import Any

import pytest

from osft.data.increments.times import fill_date, parse_time, read_time
from osft.errors import ConfigError

NOW = datetime(2026, 11, 22, 2, 0, 0, tzinfo=UTC)
NOVEMBER = 1_793_491_200.0
"""2026-11-01T00:00:00Z in seconds since 1970."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-01", "2026-11-01T00:00:00+00:00"),
        ("20261101", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T03:30:00+01:00", "2026-11-01T02:30:00+00:00"),
        ("2026-11-01 02:30Z", "2026-11-01T02:30:00+00:00"),
        # What KFP puts in the place of [[CurrentTime]].
        ("20261122020000", "2026-11-22T02:00:00+00:00"),
        ("now", "2026-11-22T02:00:00+00:00"),
        (" P1D/now ", "2026-11-21T02:00:00+00:00"),
        ("P1W/20261122020000", "2026-11-15T02:00:00+00:00"),
        ("P1DT2H30M10S/2026-11-22", "2026-11-20T21:29:50+00:00"),
    ],
)
def test_a_parameter_is_a_time_or_a_duration_before_one(text: str, expected: str) -> None:
    assert parse_time(text, name="data_since", now=NOW).isoformat() == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "1793491200", "P1M/now", "P/now", "PT/now", "P1D", "P99999999W/now", "/ "]
)
def test_a_parameter_that_is_no_time_is_named_with_what_would_be_one(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"data_since is '.*'; allowed is a date or time in ISO 8601 or now, .*P7D/now"
    ):
        parse_time(text, name="data_since", now=NOW)


@pytest.mark.parametrize("text", ["[[ScheduledTime]]", "P7D/{{$.scheduledTime.strftime('%Y-%m-%d')}}"])
def test_a_macro_that_the_server_left_as_it_is_is_told_from_a_wrong_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data_date is '.*': the pipeline server did not fill it in.*or write now"):
        parse_time(text, name="data_date", now=NOW)


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-01",
        "2026-11-01T01:00:00+01:00",
        "20261101000000",
        1_793_491_200,
        1_793_491_200.0,
        1_793_491_200_000,
        " 1793491200 ",
        "1793491200000",
        20261101,
        "20261101",
        20261101.0,
        202611010000,
        "202611010000",
        20261101000000,
    ],
)
def test_a_row_has_iso_text_or_seconds_or_milliseconds(value: Any) -> None:
    assert read_time(value) == NOVEMBER


@pytest.mark.parametrize(
    "value", ["", "soon", True, None, [], {}, 1_793_491_200_000_000, "2026", "P7D/now", "now", math.inf, 12345]
)
def test_what_is_no_time_is_not_guessed(value: Any) -> None:
    assert read_time(value) is None


@pytest.mark.parametrize("value", [0, -1_793_491_200, 631_151_999, 20261301, "202613010000", "1970-01-01", "19891231"])
def test_a_time_from_before_1990_was_meant_otherwise(value: Any) -> None:
    assert read_time(value) is None


def test_milliseconds_of_the_nineties_are_not_taken_for_dates() -> None:
    assert read_time(631_152_000_000) == read_time("631152000") == read_time("1990-01-01") == 631_152_000


def test_a_date_is_filled_into_an_address() -> None:
    uri = "s3://logs/{date:%Y/%m/%d}/{date:%H}*.jsonl"

    assert fill_date(uri, "P1D/now", now=NOW) == "s3://logs/2026/11/21/02*.jsonl"


def test_an_address_without_a_date_stays_as_it_is() -> None:
    uri = "https://example.org/100%25%20{x}.jsonl"

    assert fill_date(uri, "[[CurrentTime]]") == uri


@pytest.mark.parametrize("field", ["{date:%B}", "{date:%-d}", "{date:%}", "{date:}"])
def test_a_date_in_words_or_in_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=r"data_uri has the field '\{date:.*\}'; allowed are %Y %m %d"):
        fill_date(f"pvc://{field}.jsonl", "2026-11-22")
