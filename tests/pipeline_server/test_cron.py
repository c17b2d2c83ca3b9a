"""Cron lines: the usual five fields become the server's six."""

import pytest

from osft.errors import ConfigError
from pipeline_server.cron import to_six_fields


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("0 2 * * 0", "0 0 2 * * 0"),
        ("10 10 * * *", "0 10 10 * * *"),
        ("0 2 * * 7", "0 0 2 * * 0"),
        ("*/15 8-18 1,15 jan-JUN mon-fri", "0 */15 8-18 1,15 jan-JUN mon-fri"),
        ("30 0 2 ? * SUN", "30 0 2 ? * SUN"),
        (" @weekly ", "@weekly"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
def test_five_fields_get_their_seconds_and_six_are_kept(line: str, sent: str) -> None:
    assert to_six_fields(line) == sent


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has 0 fields. Give five"),
        ("0 2 * *", "has 4 fields. Give five .*such as '0 2 \\* \\* 0'"),
        ("60 2 * * 0", "'60' is no minute. It goes from 0 to 59"),
        ("0 24 * * 0", "'24' is no hour"),
        ("0 2 0 * 0", "'0' is no day of the month. It goes from 1 to 31"),
        ("0 2 * 13 0", "'13' is no month"),
        ("0 2 * * 5-7", "'5-7' is no day of the week. It goes from 0 to 6"),
        ("0 2 * * 0/0", "'0/0' is no day of the week"),
        ("0 2 * * SUNDAY", "'SUNDAY' is no day of the week"),
        ("18-8 2 * * 0", "'18-8' is no minute"),
        ("@never", "has 1 fields"),
    ],
)
def test_what_the_server_would_not_understand_is_refused(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_six_fields(line)
