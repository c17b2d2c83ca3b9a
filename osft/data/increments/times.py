"""Points in time: those that a user or a schedule gives, and those in rows.

A parameter is a date or a time in ISO 8601 (``2026-11-01``, ``2026-11-01T02:00:00+01:00``), the 14 digits that KFP puts
in the place of ``[[CurrentTime]]``, or ``now``. Before it may stand how much earlier, as in ISO 8601's intervals:
``P7D/now`` is a week ago. So a schedule, whose parameters are the same every time, can ask for the last week's rows or
for yesterday's file.

A row has ISO text, the 8, 12 or 14 digits of a date, or seconds or milliseconds since 1970, as a number or as text. No
row of a data set that grows is from before 1990: what would be was meant otherwise, and is no time. So no number is
two of these. What has no zone is UTC.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from osft.errors import ConfigError

NOW = "now"
DURATION = re.compile(r"P(?=.)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.ASCII)
# What KFP replaces, and leaves as it is where it knows nothing to put there.
MACRO = re.compile(r"\[\[.*\]\]|\{\{.*\}\}")
COMPACT_TIME = re.compile(r"\d{14}", re.ASCII)
COMPACT_FORMAT = "%Y%m%d%H%M%S"
# As milliseconds, all of these years are in 1976.
MINUTES = re.compile(r"(?:19|20)\d{10}", re.ASCII)
MINUTES_FORMAT = "%Y%m%d%H%M"
NUMBER = re.compile(r"\d{9,13}(?:\.\d+)?", re.ASCII)
# From here on a number is one of milliseconds: as seconds it is the year 5138, as milliseconds 1973.
FIRST_MILLISECONDS = 1e11
# From the year 2286 on it is none of both, but microseconds, or a date in digits.
END_OF_MILLISECONDS = 1e13
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
DATE_FIELD = re.compile(r"\{date:([^{}]*)\}")
# Those that are digits alone, the same in every language.
DATE_DIRECTIVES = re.compile(r"(?:[^%]|%[YmdHMSjGVy])+")


def parse_time(text: str, *, name: str, now: datetime | None = None) -> datetime:
    """Return the time that a parameter stands for, in UTC.

    Args:
        text: the parameter's value, see this module.
        name: the parameter, for the error.
        now: what ``now`` stands for; the clock's time if not given.

    Raises:
        ConfigError: if it is no time, or a macro that the pipeline server left as it is.
    """
    duration, _, end = text.strip().rpartition("/")
    try:
        # Not when it is asked for only: an earlier time than year 1 is no time either.
        return _parse_point(end, now or datetime.now(UTC)) - _parse_duration(duration)
    except (ValueError, OverflowError):
        if MACRO.search(text):
            raise ConfigError(
                f"{name} is '{text}': the pipeline server did not fill it in. It knows [[CurrentTime]], from KFP 2.16 "
                "on and in string parameters only; or write now."
            ) from None
        raise ConfigError(
            f"{name} is '{text}'; allowed is a date or time in ISO 8601 or now, with or without a duration before it, "
            "such as 2026-11-01 or P7D/now."
        ) from None


def read_time(value: Any) -> float | None:
    """Return the time in a row as seconds since 1970, or ``None`` if ``value`` is no time."""
    text = _as_text(value)
    if text is None:
        return None
    try:
        seconds = _read_text(text)
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= EARLIEST else None


def fill_date(uri: str, date: str, *, now: datetime | None = None) -> str:
    """Return ``uri`` with a date in the place of each ``{date:FORMAT}``, such as ``{date:%Y-%m-%d}``.

    Args:
        uri: an address; without such a field it is returned as it is, and the date is not looked at.
        date: as :func:`parse_time` takes it.
        now: what ``now`` stands for; the clock's time if not given.

    Raises:
        ConfigError: if the date is none, or a format has other than ``%Y %m %d %H %M %S %j %G %V %y``.
    """
    if not DATE_FIELD.search(uri):
        return uri
    time = parse_time(date, name="data_date", now=now)
    return DATE_FIELD.sub(lambda field: _format_date(field[1], time), uri)


def _format_date(directives: str, time: datetime) -> str:
    if not DATE_DIRECTIVES.fullmatch(directives):
        raise ConfigError(
            f"data_uri has the field '{{date:{directives}}}'; allowed are %Y %m %d %H %M %S %j %G %V %y and text, such "
            "as {date:%Y-%m-%d}."
        )
    return time.strftime(directives)


def _parse_point(text: str, now: datetime) -> datetime:
    """Return a time of a parameter, without a duration.

    Raises:
        ValueError: if it is none.
    """
    return now.astimezone(UTC) if text == NOW else _parse_absolute(text)


def _parse_absolute(text: str) -> datetime:
    """Return a date or a time in ISO 8601, or in 14 digits, in UTC.

    Raises:
        ValueError: if it is none.
        OverflowError: if its zone takes it out of the years that there are.
    """
    is_compact = COMPACT_TIME.fullmatch(text) is not None
    time = datetime.strptime(text, COMPACT_FORMAT) if is_compact else datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _parse_duration(text: str) -> timedelta:
    """Return a duration in ISO 8601; months and years, which have no fixed length, are none.

    Raises:
        ValueError: if it is none.
        OverflowError: if it is longer than time is.
    """
    if not text:
        return timedelta()
    if not (match := DURATION.fullmatch(text)):
        raise ValueError(text)
    weeks, days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def _as_text(value: Any) -> str | None:
    """Return a value of a row as text, a number as its digits; ``None`` if it is neither."""
    if isinstance(value, str):
        return value.strip()
    # A JSON true is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    # A table's column with a gap makes floats of whole numbers.
    return str(int(value)) if value == int(value) else str(value)


def _read_text(text: str) -> float:
    """Return the time that a row's text stands for, in seconds since 1970.

    Raises:
        ValueError: if it is none.
        OverflowError: if its zone takes it out of the years that there are.
    """
    if MINUTES.fullmatch(text):
        return datetime.strptime(text, MINUTES_FORMAT).replace(tzinfo=UTC).timestamp()
    if not NUMBER.fullmatch(text):
        return _parse_absolute(text).timestamp()
    number = float(text)
    if number >= END_OF_MILLISECONDS:
        raise ValueError(text)
    return number / 1000 if number >= FIRST_MILLISECONDS else number
