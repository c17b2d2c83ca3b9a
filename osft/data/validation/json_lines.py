"""What one line must be before it is a row: UTF-8, JSON as orjson takes it, no key twice, not nested without end.

orjson keeps the last of two equal keys and says nothing, so the keys that are written are counted against those that
were parsed. Python's json is slower and takes more (lone surrogates, NaN); it is asked only to explain a line that
is wrong already.
"""

import json
import math
import re
from typing import Any, NoReturn

import numpy as np
import orjson

from osft.data.validation.findings import RowProblem, cut, quote

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# No row that is read here needs ten levels. json, pyarrow and jinja recurse and give up somewhere below a thousand.
MAX_NESTING = 128
# orjson gives strings as UTF-8, so a NUL that passed it was written like this.
ESCAPED_NUL = b"\\u0000"
# What orjson says of a text and Python of a character that end too early.
_END_OF_DATA = "unexpected end of data"
_TRUNCATED = (
    "truncated-line",
    "",
    "The line ends before its JSON does: it was cut off, or the object goes on in the next line.",
)
_KEY_END = b'":'
_SPACED_KEY_END = re.compile(rb'"[ \t\r]+:')
# Possessive, so that no text makes it walk back; the last text of a line that is cut off has no end.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def explain_unparsable(raw: bytes, error: orjson.JSONDecodeError) -> RowProblem:
    """Say why ``raw``, which orjson refused with ``error``, is not JSON, the encoding first."""
    if raw.startswith(BYTE_ORDER_MARK):
        return "byte-order-mark", "", "The line starts with a byte order mark. Save the file as UTF-8 without one."
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as decode_error:
        if decode_error.reason == _END_OF_DATA:
            return _TRUNCATED
        return "not-utf8", "", f"Byte {decode_error.start + 1} of the line is not UTF-8."
    if (depth := _nesting_of(raw)) > MAX_NESTING:
        return _too_deep(depth)
    if (problem := _find_foreign_value(text)) is not None:
        return problem
    if error.msg.startswith(_END_OF_DATA):
        return _TRUNCATED
    return "not-json", "", f"The line is not JSON: {error.msg} (column {error.colno})."


def check_text(raw: bytes, row: dict[str, Any]) -> RowProblem | None:
    """Return what the parsed ``row`` does not show: nesting without end, a key that is there twice."""
    keys, depth = measure(row)
    if depth > MAX_NESTING:
        return _too_deep(depth)
    if has_keys(raw, keys):
        return None
    # What a repeated key hides may be deep, and json recurses.
    depth = _nesting_of(raw)
    return _too_deep(depth) if depth > MAX_NESTING else _find_repeated_key(raw)


def has_keys(raw: bytes, keys: int) -> bool:
    """Return whether ``raw``, valid JSON, has ``keys`` keys, those that are there twice counted twice.

    A quote before a colon ends a key, or stands in a text. So their number, if white space hides none, is at least
    that of the keys, and if it equals the keys that were parsed, every key was.
    """
    if raw.count(_KEY_END) == keys and _SPACED_KEY_END.search(raw) is None:
        return True
    return _STRINGS.sub(b"", raw).count(b":") == keys


def measure(value: Any) -> tuple[int, int]:
    """Return how many keys a parsed value has on all levels, and how many levels of lists and objects."""
    keys = depth = 0
    level = [value]
    while level := [item for item in level if type(item) in (dict, list)]:
        depth += 1
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                keys += len(item)
                below.extend(item.values())
            else:
                below.extend(item)
        level = below
    return keys, depth


def json_type(value: Any) -> str:
    """Name the JSON type of a parsed value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _too_deep(depth: int) -> RowProblem:
    return "too-deep", "", f"Lists and objects are nested {depth} levels deep; at most {MAX_NESTING} are read."


def _nesting_of(raw: bytes) -> int:
    """Return the deepest level of brackets and braces outside texts."""
    characters = np.frombuffer(_STRINGS.sub(b"", raw), dtype=np.uint8)
    steps = np.zeros(256, dtype=np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    return int(np.cumsum(steps[characters], dtype=np.int32).max(initial=0))


class _ForeignValueError(ValueError):
    """A value that Python's json takes and JSON does not have; its text is what is wrong with it."""


def _find_foreign_value(text: str) -> RowProblem | None:
    """Return what other libraries write and JSON does not have, or ``None`` if something else is wrong.

    Args:
        text: nested so little that json can recurse.
    """
    try:
        value = json.loads(text, parse_int=_finite, parse_float=_finite, parse_constant=_refuse_constant)
    except _ForeignValueError as error:
        return "number-out-of-range", "", str(error)
    except json.JSONDecodeError:
        return None
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return (
            "lone-surrogate",
            "",
            "A text holds one half of a surrogate pair (\\ud800 to \\udfff), which is no character.",
        )
    return None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _ForeignValueError(f"The number {cut(text)} is larger than any that can be read.")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _ForeignValueError(f"{name} is not JSON. Write null, or leave it out.")


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, those that a later one hides included."""


def _find_repeated_key(raw: bytes) -> RowProblem:
    """Return the first key that its object has twice; ``raw`` is valid JSON that has one."""
    level: list[tuple[str, Any]] = [("", json.loads(raw, object_pairs_hook=_Pairs, parse_int=float))]
    while level:
        below: list[tuple[str, Any]] = []
        for path, value in level:
            seen: set[str] = set()
            if not isinstance(value, _Pairs):
                below += [(f"{path}[{index}]", item) for index, item in enumerate(value) if isinstance(item, list)]
                continue
            for key, item in value:
                place = f"{path}.{cut(key)}" if path else cut(key)
                if key in seen:
                    return "duplicate-key", place, f"The key {quote(key)} is there twice in one object; keep one."
                seen.add(key)
                if isinstance(item, list):
                    below.append((place, item))
        level = below
    raise AssertionError("the line has no key twice")
