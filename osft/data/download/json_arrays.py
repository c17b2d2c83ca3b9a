"""The rows of a file that is one JSON array, one element in memory at a time.

Elements keep their text but for line breaks and the indentation behind them, so that keys that occur twice and numbers
that no double holds reach validation as they are.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from osft.data.download.compression import CHUNK_BYTES, open_plain
from osft.errors import DataError

# Read at once; an element that needs more gets it.
ARRAY_CHUNK_CHARACTERS = 1 << 18
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACE = re.compile(r"[ \t\r\n]+")
# Inside of strings JSON allows no line break.
LINE_BREAK = re.compile(r"[\r\n][ \t\r\n]*")
# The longest piece that may stand incomplete at the end of a text: -Infinity, or half of an escaped pair.
LONGEST_TOKEN_CHARACTERS = 12
# What a number may end in that goes on behind the text read so far; its decoder takes what stands before that.
NUMBER_END = "e+"


def holds_array(path: Path, name: str) -> bool:
    """Return whether the first character of a file, white space and a byte order mark apart, opens an array.

    Raises:
        DataError: if a compressed file is damaged before it.
    """
    with open_plain(path, name) as file:
        start = file.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK).lstrip()
        while not start and (more := file.read(CHUNK_BYTES)):
            start = more.lstrip()
    return start.startswith(b"[")


def array_elements(path: Path, name: str) -> Iterator[bytes]:
    """Yield the text of each element, on one line, in UTF-8.

    Raises:
        DataError: if the file is damaged or holds something else than one array of JSON.
    """
    number = 0
    try:
        with io.TextIOWrapper(open_plain(path, name), encoding="utf-8-sig", newline="") as file:
            array = _ArrayText(file)
            array.take("[")
            while not array.take("]"):
                if number and not array.take(","):
                    raise ValueError("a comma is missing" if array.next_character() else "the array has no end")
                if number and array.next_character() == "]":
                    raise ValueError("there is no element behind the last comma")
                number += 1
                yield LINE_BREAK.sub("", array.take_element()).encode()
            if array.next_character():
                raise ValueError("there is text behind the array")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        # Positions would be those in memory.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{name}: not a JSON array of rows, at element {number} ({reason}). Mend the file.") from error


class _ArrayText:
    """The text of an array, of which little more than one element is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        # Numbers are not read: Python refuses one of 4,300 digits, and validation judges them.
        self._decoder = json.JSONDecoder(parse_int=str, parse_float=str)

    def next_character(self) -> str:
        """Return the next character that is no white space, without taking it; none at the end of the file."""
        while True:
            self._position = _end_of_space(self._text, self._position)
            if self._position < len(self._text) or not self._read_more(ARRAY_CHUNK_CHARACTERS):
                return self._text[self._position : self._position + 1]

    def take(self, character: str) -> bool:
        """Go behind ``character`` if it is the next one."""
        found = self.next_character() == character
        self._position += found
        return found

    def take_element(self) -> str:
        """Return the text of the next value and go behind it."""
        self.next_character()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._position)
                if end + len(NUMBER_END) < len(self._text):
                    break
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    raise
            # As much again each time: the work stays linear in the element's length.
            if not self._read_more(max(ARRAY_CHUNK_CHARACTERS, len(self._text) - self._position)):
                _, end = self._decoder.raw_decode(self._text, self._position)
                break
        element = self._text[self._position : end]
        self._position = end
        return element

    def _read_more(self, size: int) -> bool:
        """Put more of the file behind what is not taken yet; return whether there was more."""
        more = self._file.read(size)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Return whether an error may only mean that the text ends too early; else the whole file would be read."""
        near_the_end = error.pos >= len(self._text) - LONGEST_TOKEN_CHARACTERS
        return near_the_end or error.msg.startswith("Unterminated string")


def _end_of_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position
