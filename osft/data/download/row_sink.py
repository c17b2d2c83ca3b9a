"""Where downloaded rows go: one file of JSON Lines, counted and hashed while it is written."""

import hashlib
import logging
import re
from typing import IO

from osft.data.progress import RowProgress

logger = logging.getLogger(__name__)

# The white space of bytes.isspace between two newlines. Possessive: a long run of it is looked at once.
BLANK_LINE = re.compile(rb"\n[ \t\r\v\f]*+(?=\n)")


class RowSink:
    """Counts rows, and hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        self._file = file
        self._digest = hashlib.sha256()
        self._in_line = False
        self._line_is_blank = True
        self.progress = RowProgress(logger, "downloaded")
        self.lines = 0
        """Lines that have ended, blank ones too."""

    @property
    def sha256(self) -> str:
        """The hash of everything written so far."""
        return self._digest.hexdigest()

    def write_line(self, line: bytes) -> None:
        """Append one line; a newline is added if it has none."""
        line = line if line.endswith(b"\n") else line + b"\n"
        self._write(line, rows=0 if line.isspace() else 1, lines=1)

    def write_block(self, block: bytes) -> None:
        """Append a piece of a JSON Lines file, whose last line may go on in the next piece.

        No Python code runs for each line: counting takes about as long as the hash. After the last piece
        :meth:`end_line` must follow.
        """
        first, last = block.find(b"\n"), block.rfind(b"\n")
        if first < 0:
            self._write(block, rows=0, lines=0)
            self._line_is_blank = self._line_is_blank and _is_blank(block)
            self._in_line = self._in_line or bool(block)
            return
        newlines = block.count(b"\n")
        blank_lines = sum(1 for _ in BLANK_LINE.finditer(block, first, last + 1))
        if self._line_is_blank and _is_blank(block[:first]):
            blank_lines += 1
        self._write(block, rows=newlines - blank_lines, lines=newlines)
        rest = block[last + 1 :]
        self._line_is_blank, self._in_line = _is_blank(rest), bool(rest)

    def end_line(self) -> None:
        """Give the last line of a file its newline, unless it has one."""
        if self._in_line:
            self._write(b"\n", rows=0 if self._line_is_blank else 1, lines=1)
        self._line_is_blank, self._in_line = True, False

    def _write(self, data: bytes, *, rows: int, lines: int) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.lines += lines
        self.progress.advance(rows, len(data))


def _is_blank(text: bytes) -> bool:
    return not text or text.isspace()
