"""The data files in a zip or tar archive, one after the other, without ever unpacking it under its own names.

A member's name orders the members and stands in errors; it never becomes a path. An archive that holds anything but
files and folders with harmless names is refused as a whole, because it was made to be something else than data.
"""

import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import IO

from osft.data.download.compression import CHUNK_BYTES, open_plain, read_chunks, write_scratch
from osft.data.download.suffixes import ALLOWED_SUFFIXES, is_archive, is_data_file, split_suffix
from osft.errors import DataError, one_line

# Each costs memory for as long as the archive is open.
MAX_MEMBERS = 100_000
MEMBERS_NAMED_IN_ERROR = 5
# Of a zip's directory, which is read at once: names of half a thousand bytes for that many members.
MAX_DIRECTORY_BYTES = 1 << 26
ZIP_ENTRY_MAGIC = b"PK\1\2"
DRIVE = re.compile(r"[A-Za-z]:")
TAR_BLOCK_BYTES = 512
# The standard library unpacks these two in bounded memory.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ZIP_ENCRYPTED_FLAG = 1
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """What an archive says about one of its entries."""

    name: str
    is_folder: bool
    refusal: str | None
    """What it is, if neither a plain file nor a folder."""

    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        """The name in its shortest form, for comparing; nothing is written there."""
        return PurePosixPath(self.name)

    @property
    def is_data(self) -> bool:
        """Whether it is a file that rows are taken from: as in a folder, hidden ones are not."""
        hidden = any(part.startswith(".") for part in self.path.parts)
        return not self.is_folder and not hidden and is_data_file(self.name)


class _TooManyMembersError(Exception):
    """There is no memory for them."""


class _HeaderReader(io.FileIO):
    """A tar file whose headers are short: tarfile reads one at once, and it may claim to have gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= CHUNK_BYTES:
            raise tarfile.ReadError(f"a header has more than {CHUNK_BYTES} bytes")
        return super().read(size) or b""


class _DirectoryReader(io.FileIO):
    """A zip file whose directory is short: zipfile makes an object of each entry, however many its end counts."""

    def read(self, size: int | None = -1, /) -> bytes:
        # Without a size, it is only ever asked for the last bytes of the file.
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has more than {MAX_DIRECTORY_BYTES} bytes")
        content = super().read(size) or b""
        if content.count(ZIP_ENTRY_MAGIC) > MAX_MEMBERS:
            raise _TooManyMembersError
        return content


def archived_files(path: Path, name: str, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and an unpacked copy of each data file of an archive, in the order of names.

    Args:
        path: the archive's bytes.
        name: its own name, which gives the kind and stands in errors.
        scratch: folder for the copies; each is removed when the next one is asked for.

    Raises:
        DataError: if the archive is damaged, holds what is refused, or holds no data file.
    """
    kind, compression = split_suffix(name)
    unpacked, copy = scratch / "unpacked.tar", scratch / "member"
    try:
        if compression:
            with open_plain(path, name) as file:
                write_scratch(read_chunks(file), unpacked, name)
        with _open_members(unpacked if compression else path, name, kind) as members:
            for member in _data_members(members, name):
                write_scratch(_read_member(member, name), copy, f"{name}/{member.path}")
                yield str(member.path), copy
    finally:
        unpacked.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)


@contextmanager
def _open_members(path: Path, name: str, kind: str) -> Iterator[list[_Member]]:
    """Give the members, which can be opened inside the block."""
    with ExitStack() as stack:
        try:
            members = _zip_members(path, stack) if kind == ".zip" else _tar_members(path, stack)
        except _TooManyMembersError as error:
            raise DataError(
                f"{name}: it has more than {MAX_MEMBERS} members. Unpack it and give the folder."
            ) from error
        except ARCHIVE_ERRORS as error:
            raise _damaged(name, error) from error
        yield members


def _zip_members(path: Path, stack: ExitStack) -> list[_Member]:
    archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_DirectoryReader(path))))
    return [
        _Member(
            # As it is stored: what zipfile makes of it ends before a NUL.
            name=info.orig_filename,
            # Not is_dir, which ends with an IndexError for a name without letters.
            is_folder=info.orig_filename.endswith("/"),
            refusal=_zip_refusal(info),
            open=partial(archive.open, info),
        )
        for info in archive.infolist()
    ]


def _zip_refusal(info: zipfile.ZipInfo) -> str | None:
    # Zero where the archive was made on a system without such modes.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if stat.S_ISLNK(kind) else "is no plain file"
    if info.flag_bits & ZIP_ENCRYPTED_FLAG:
        return "is encrypted"
    return None if info.compress_type in ZIP_METHODS else "is packed by another method than deflate"


def _tar_members(path: Path, stack: ExitStack) -> list[_Member]:
    file = stack.enter_context(_HeaderReader(path))
    archive = stack.enter_context(tarfile.TarFile(fileobj=file))
    infos = list(islice(archive, MAX_MEMBERS + 1))
    if len(infos) > MAX_MEMBERS:
        raise _TooManyMembersError
    _check_tar_end(file, archive.offset)
    return [
        _Member(
            name=info.name, is_folder=info.isdir(), refusal=_tar_refusal(info), open=partial(_open_tar, archive, info)
        )
        for info in infos
    ]


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    if file is None:
        raise tarfile.ReadError("a member is no plain file")
    return file


def _tar_refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "is a link"
    return None if info.isdir() or (info.isreg() and not info.issparse()) else "is no plain file"


def _check_tar_end(file: _HeaderReader, end: int) -> None:
    """Check that zeros, a block at least, follow the last member; tarfile takes a damaged header for the end."""
    file.seek(end)
    if file.read(TAR_BLOCK_BYTES) != bytes(TAR_BLOCK_BYTES):
        raise tarfile.ReadError(f"at byte {end} stands neither a member nor the end")
    if any(chunk.strip(b"\0") for chunk in read_chunks(file)):
        raise tarfile.ReadError(f"something follows its end at byte {end}")


def _data_members(members: Sequence[_Member], name: str) -> list[_Member]:
    """Return the data files in the order of names.

    Raises:
        DataError: if any member is refused, two data files share a name, or there is none.
    """
    for member in members:
        if reason := _refusal(member):
            raise DataError(f"{name}: member {member.name!a} {reason}. Pack plain files again, under relative names.")
    found = sorted((member for member in members if member.is_data), key=lambda member: member.path)
    for member, following in pairwise(found):
        if member.path == following.path:
            raise DataError(f"{name}: two members have the name '{member.path}'. Pack them under names of their own.")
    if not found:
        names = [member.name for member in members if not member.is_folder]
        more = f" and {len(names) - MEMBERS_NAMED_IN_ERROR} more" if len(names) > MEMBERS_NAMED_IN_ERROR else ""
        listed = ", ".join(names[:MEMBERS_NAMED_IN_ERROR]) + more or "no files"
        raise DataError(f"{name}: it holds {listed}, and none that is data. Allowed are {ALLOWED_SUFFIXES}.")
    return found


def _refusal(member: _Member) -> str | None:
    """Return why a member, and with it its archive, is refused."""
    if not member.name.isprintable():
        return "has a name that cannot be shown"
    if member.name.startswith("/") or DRIVE.match(member.name):
        return "has an absolute name"
    if ".." in member.path.parts or "\\" in member.name:
        return "has a name that may leave the archive"
    if member.refusal:
        return member.refusal
    return "is an archive itself" if is_archive(member.name) and not member.is_folder else None


def _read_member(member: _Member, name: str) -> Iterator[bytes]:
    """Yield a member's bytes, which its archive checks as far as its kind can."""
    try:
        with member.open() as file:
            yield from read_chunks(file)
    except ARCHIVE_ERRORS as error:
        raise _damaged(f"{name}/{member.path}", error) from error


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: the archive is damaged or cut off ({one_line(error)}). Fetch or pack it again.")
