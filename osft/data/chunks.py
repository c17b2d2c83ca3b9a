"""A file of lines in pieces of a few megabytes, so that several processes can read it at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What is read at once behind a piece, to find the end of its last line.
READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Whole lines that follow each other in a file."""

    start: int
    """Offset of the first byte."""

    size: int
    """Bytes, the last newline included."""

    first_line: int
    """Number of the first line, from 1."""

    def read(self, path: Path) -> bytes:
        """Return the bytes."""
        with path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def split_into_chunks(path: Path, chunk_bytes: int) -> Iterator[Chunk]:
    """Yield ``path`` in chunks of about ``chunk_bytes``; a line longer than that is a chunk of its own size.

    The file is read once to count lines, a piece at a time: memory does not grow with it, nor with a long line.
    """
    start, line = 0, 1
    with path.open("rb") as file:
        while block := file.read(chunk_bytes):
            size, newlines = len(block), block.count(b"\n")
            while not block.endswith(b"\n") and (block := file.readline(READ_BYTES)):
                size += len(block)
                newlines += block.endswith(b"\n")
            yield Chunk(start=start, size=size, first_line=line)
            start, line = start + size, line + newlines
