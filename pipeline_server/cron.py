"""The cron lines of pipeline servers, which begin with a field of seconds.

The server parses with robfig/cron 1, in which the *last* of six fields may be missing: the usual five fields are taken
for seconds, minutes, hours, days and months, and ``0 2 * * 0`` would be refused, but ``10 10 * * *`` run every hour. So
the five fields get their seconds here, and a line that the server would misread is refused before it is sent.
"""

import re

from osft.errors import ConfigError

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Of each field: its name, its smallest and largest value, and the words for its values.
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)
ITEM = re.compile(r"(?P<first>[*?]|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?")
EVERY = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly|every [0-9hms.]+)")


def to_six_fields(line: str) -> str:
    """Return ``line`` as the server reads it.

    Args:
        line: five fields as in crontab, six with the seconds first, or a word such as ``@weekly``.

    Raises:
        ConfigError: if it is none of these.
    """
    if EVERY.fullmatch(line.strip()):
        return line.strip()
    fields = line.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise ConfigError(
            f"--schedule '{line}' has {len(fields)} fields. Give five (minute, hour, day, month, day of the week), "
            "such as '0 2 * * 0', or six with the seconds first."
        )
    # Both crontab's numbers for Sunday; the server knows one.
    fields[5] = "0" if fields[5] == "7" else fields[5]
    for text, (name, smallest, largest, words) in zip(fields, FIELDS, strict=True):
        if not all(_is_valid(item, smallest, largest, words) for item in text.split(",")):
            raise ConfigError(f"--schedule '{line}': '{text}' is no {name}. It goes from {smallest} to {largest}.")
    return " ".join(fields)


def _is_valid(item: str, smallest: int, largest: int, words: tuple[str, ...]) -> bool:
    match = ITEM.fullmatch(item)
    if not match or match["step"] == "0":
        return False
    if match["first"] in "*?":
        return match["last"] is None
    ends = [_value(text, words, smallest) for text in (match["first"], match["last"] or match["first"])]
    return smallest <= ends[0] <= ends[1] <= largest


def _value(text: str, words: tuple[str, ...], smallest: int) -> int:
    """Return what ``text`` stands for, -1 if for nothing."""
    if text.upper() in words:
        return words.index(text.upper()) + smallest
    return int(text) if text.isdecimal() else -1
