"""What is wrong with a row, and where it is: line, byte, place in the row, and the file that the row came from.

Rows of many files are put together in ``rows.jsonl`` before they are checked; ``source.json`` beside it says which
lines came from which file, so that a person can mend the file that they have.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osft.data.files import SOURCE_NAME
from osft.errors import DataError
from osft.workspace import read_json

# A hostile row must not fill a log line.
MAX_NAME_CHARACTERS = 40

RowProblem = tuple[str, str, str]
"""Code, path, message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with one row."""

    file: str
    """Name of the file that was checked."""

    line: int
    """Line of that file, from 1."""

    offset: int
    """Byte of that file at which the line starts, from 0."""

    path: str
    """Where in the row, such as ``messages[2].content``; empty for the row as a whole."""

    code: str
    """Stable name of the problem, such as ``role-unknown``."""

    message: str
    """A sentence that says what is wrong and what would be right."""

    origin: str | None = None
    """Where the row was before the file was put together, such as ``part-1.jsonl.gz, line 17``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origins:
    """The files that a file of rows was put together from."""

    names: tuple[str, ...] = ()
    first_lines: tuple[int, ...] = ()
    """First line of each, ascending."""

    @classmethod
    def beside(cls, rows: Path) -> "Origins":
        """Return what the ``source.json`` beside ``rows`` says; nothing if there is none or it names one file.

        Raises:
            DataError: if ``source.json`` cannot be read.
        """
        source = rows.with_name(SOURCE_NAME)
        if not source.is_file():
            return cls()
        try:
            files = [_named_lines(file) for file in read_json(source)["files"] if file.get("lines")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{source}: this is no source.json of a download. Download again, or remove it.") from error
        if len(files) < 2:
            return cls()
        files.sort()
        return cls(names=tuple(name for _, name in files), first_lines=tuple(line for line, _ in files))

    def of(self, line: int) -> str | None:
        """Return where ``line`` was, or ``None`` if the rows come from one file."""
        index = bisect_right(self.first_lines, line) - 1
        return None if index < 0 else f"{self.names[index]}, line {line - self.first_lines[index] + 1}"


def quote(value: str) -> str:
    """Quote a text of a row, cut so that it cannot fill a line."""
    return repr(cut(value))


def cut(name: str) -> str:
    """Return ``name``, cut so that it cannot fill a line."""
    return name if len(name) <= MAX_NAME_CHARACTERS else name[:MAX_NAME_CHARACTERS] + "..."


def _named_lines(file: Mapping[str, Any]) -> tuple[int, str]:
    return int(file["first_line"]), str(file["name"])
