"""Compressed files as streams of plain bytes: in bounded memory, to the last member, and never short in silence.

A compressed file may be several members (frames, streams) one behind the other. The standard library's bz2 and lzma
files take a damaged second member for the end, and zstandard's reader takes a cut one for it; so Arrow reads gzip and
zstandard here, which does neither, and :class:`_MemberStream` the two others.
"""

import bz2
import io
import lzma
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa

from osft.data.download.suffixes import split_suffix
from osft.errors import DataError, one_line

CHUNK_BYTES = 1 << 20
# xz -9 needs 65 MB to unpack; a header may ask for 4 GB.
XZ_MEMORY_BYTES = 1 << 28
ARROW_CODECS = {".gz": "gzip", ".zst": "zstd"}
# What is left of a disk for others when a file that unpacks to more than it holds is given up.
MIN_FREE_BYTES = 1 << 28


class _Decompressor(Protocol):
    """What ``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor`` share: one member."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Stream(Protocol):
    """What plain bytes are read from."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _MemberStream:
    """The plain bytes of members that follow each other, with zeros between them, as xz may pad them."""

    def __init__(self, packed: IO[bytes], start_member: Callable[[], _Decompressor]) -> None:
        self._packed = packed
        self._start_member = start_member
        self._member: _Decompressor | None = None
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, none at the end of the last member."""
        while member := self._member or self._next_member():
            if data := self._read_member(member, size):
                return data
        return b""

    def close(self) -> None:
        self._packed.close()

    def _next_member(self) -> _Decompressor | None:
        while not (rest := self._rest.lstrip(b"\0")):
            self._rest = self._packed.read(CHUNK_BYTES)
            if not self._rest:
                return None
        self._rest = rest
        self._member = self._start_member()
        return self._member

    def _read_member(self, member: _Decompressor, size: int) -> bytes:
        if member.needs_input and not self._rest:
            self._rest = self._packed.read(CHUNK_BYTES)
            if not self._rest:
                raise EOFError("the last member has no end")
        data = member.decompress(self._rest, size)
        self._rest = b""
        if member.eof:
            self._rest, self._member = member.unused_data, None
        return data


class _PlainBytes(io.RawIOBase):
    """Makes a file object of a stream, and a clear error of what goes wrong in it."""

    def __init__(self, stream: _Stream, name: str, compression: str) -> None:
        super().__init__()
        self._stream = stream
        self._name = name
        self._compression = compression

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, OSError, lzma.LZMAError, pa.ArrowException) as error:
            raise _damaged(self._name, self._compression, one_line(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def open_plain(path: Path, name: str) -> io.BufferedReader:
    """Open a file for reading its plain bytes, whatever it is compressed with.

    Args:
        path: the file's bytes.
        name: the file's own name, whose suffix gives the compression; reading names it in a :class:`DataError` if the
            file is damaged or cut off.

    Raises:
        ConfigError: if the suffix is not known.
        DataError: if a compressed file is empty.
    """
    _, compression = split_suffix(name)
    if not compression:
        return path.open("rb")
    if path.stat().st_size == 0:
        raise _damaged(name, compression, "it is empty")
    stream: _Stream
    if compression in ARROW_CODECS:
        stream = pa.CompressedInputStream(pa.OSFile(str(path)), ARROW_CODECS[compression])
    elif compression == ".bz2":
        stream = _MemberStream(path.open("rb"), bz2.BZ2Decompressor)
    else:
        stream = _MemberStream(path.open("rb"), partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, XZ_MEMORY_BYTES))
    return io.BufferedReader(_PlainBytes(stream, name, compression), CHUNK_BYTES)


def read_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of :data:`CHUNK_BYTES`."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def write_scratch(chunks: Iterable[bytes], target: Path, name: str) -> None:
    """Write what is unpacked to ``target``, and stop before it fills the disk.

    No ratio of sizes tells a decompression bomb from data that repeats itself, and declared sizes lie; the free disk
    does not.

    Args:
        chunks: the bytes.
        target: a file of our own in a scratch folder.
        name: what is unpacked, for the error.

    Raises:
        DataError: if less than :data:`MIN_FREE_BYTES` of the disk would be left.
    """
    with target.open("wb") as file:
        for chunk in chunks:
            if shutil.disk_usage(target.parent).free < MIN_FREE_BYTES:
                raise DataError(
                    f"{name}: unpacked it is more than the disk holds ({file.tell()} bytes so far). "
                    "Check the file, or give the output a larger volume."
                )
            file.write(chunk)


def _damaged(name: str, compression: str, reason: str) -> DataError:
    return DataError(f"{name}: the {compression} file is damaged or cut off ({reason}). Fetch or pack it again.")
