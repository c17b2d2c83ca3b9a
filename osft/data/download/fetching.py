"""What every remote source has in common: half-fetched files that a later call goes on with, retries, checksums.

The bytes of a file go to a :class:`Part` on disk, with a record beside it of the version that they are of. A connection
that breaks, in this process or with it, loses nothing: the next request asks for the rest of that version, and bytes of
two versions never meet. Waiting between attempts is tenacity's; the sources say which errors are worth it, by
raising :class:`DownloadInterruptedError`.
"""

import errno
import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from osft.data.download.formats import copy_rows
from osft.data.download.row_sink import RowSink
from osft.errors import DownloadError
from osft.workspace import read_json, write_json

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# Attempts in a row that bring no byte more.
ATTEMPTS = 6
# Doubles with each attempt in a row: 1, 2, 4, 8 and 16 seconds.
FIRST_WAIT_SECONDS = 1.0
# Also for a server that asks for more patience.
LONGEST_WAIT_SECONDS = 120.0
# Request timeout, too early, too many requests.
TRANSIENT_REFUSALS = (408, 425, 429)
FIRST_SERVER_ERROR = 500
# Not implemented, HTTP version not supported, network authentication required: waiting mends none of them.
LASTING_SERVER_ERRORS = (501, 505, 511)
# A quota and a limit of the process read the same to who must make room.
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART_SUFFIX, RECORD_SUFFIX = ".part", ".json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOrigin:
    """One file, or one dataset of a hub, as the source described it."""

    name: str

    size_bytes: int | None = None
    """As it was fetched, packed if it is."""

    revision: str | None = None

    etag: str | None = None

    last_modified: str | None = None
    """As the source writes it."""

    validator: str | None = None
    """What names the version for sure: a strong ETag, or a time that was long past when the file was fetched."""

    sha256: str | None = None
    """Of the bytes that were fetched."""

    first_line: int = 1
    """Number, from 1, of its first line in ``rows.jsonl``."""

    lines: int = 0
    """How many lines of ``rows.jsonl`` came from it, blank ones included."""


class RowSource(Protocol):
    """A place that rows come from."""

    @property
    def uri(self) -> str:
        """The dataset's URI as the user gave it, without credentials."""

    @property
    def identity(self) -> str:
        """What tells this source from every other one; may hold a secret, so only its hash is stored."""

    def is_unchanged(self, files: Sequence[FileOrigin]) -> bool:
        """Return whether the source still gives what an earlier :meth:`copy_rows` found, fetching no rows."""

    def copy_rows(self, sink: RowSink, folder: Path, /) -> tuple[FileOrigin, ...]:
        """Append every row to ``sink``; what is left in ``folder`` by a call that failed, the next one goes on with."""


class DownloadInterruptedError(DownloadError):
    """A request that may work when it is made again; the message goes to the log, so it may hold no secret."""

    def __init__(self, message: str, *, wait_seconds: float = 0.0) -> None:
        """Keep the reason and how long the server asks to wait."""
        super().__init__(message)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class FileVersion:
    """Which version of a remote file some bytes are of."""

    etag: str | None = None
    last_modified: str | None = None

    size_bytes: int | None = None
    """Of the whole file, if the source says."""

    validator: str | None = None
    """What a request for the rest names the version by; without one there is no going on."""

    encoding: str | None = None
    """How the bytes are packed beyond what the file's name says."""

    digests: Mapping[str, str] = field(default_factory=dict)
    """Checksums that the source gives: name of the hash to hexadecimal text."""


class Part:
    """The bytes of one remote file that are here, from its start, and a record of the version that they are of."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Find what an earlier call left.

        Args:
            folder: where the files lie.
            identity: what tells this file from every other one; only its hash is stored.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.path = folder / f"{name}{PART_SUFFIX}"
        self._record = folder / f"{name}{RECORD_SUFFIX}"

    @property
    def size_bytes(self) -> int:
        """How many bytes are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> FileVersion | None:
        """What the record says; ``None`` if there is none that can be read."""
        try:
            return FileVersion(**read_json(self._record))
        except (OSError, ValueError, TypeError):
            # Nothing was fetched, or by a version of this code that kept other records: it is fetched from the start.
            return None

    @property
    def is_complete(self) -> bool:
        """Whether all bytes of the version are here."""
        return self.version is not None and self.version.size_bytes == self.size_bytes and self.path.exists()

    def start(self, version: FileVersion) -> None:
        """Drop all bytes; those that follow are of ``version``."""
        self.clear()
        self.path.touch()
        self.record(version)

    def record(self, version: FileVersion) -> None:
        """Say which version the bytes are of."""
        write_json(self._record, asdict(version))

    def clear(self) -> None:
        """Remove bytes and record, the record first: bytes without one are not gone on with."""
        self._record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def check(self, name: str) -> str:
        """Return the sha256 of the bytes, after comparing them with the checksums of their version.

        Args:
            name: the source and the file, for the error.

        Raises:
            DownloadError: if one differs; the bytes are removed.
        """
        version = self.version or FileVersion()
        for algorithm, expected in version.digests.items():
            if (found := _hash_file(self.path, algorithm)) != expected:
                self.clear()
                raise DownloadError(
                    f"{name}: the {algorithm} of what arrived is {found}, but the source says {expected}. "
                    "Try again; if it stays so, upload the file again."
                )
        return version.digests.get("sha256") or _hash_file(self.path, "sha256")


def _hash_file(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        # MD5 finds damage here, not forgery: systems in FIPS mode allow it for that.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def keep_parts(folder: Path) -> None:
    """Remove everything from ``folder`` but parts that hold bytes, and their records."""
    for path in folder.iterdir():
        has_bytes = path.with_suffix(PART_SUFFIX).exists() and path.with_suffix(PART_SUFFIX).stat().st_size > 0
        if path.suffix in (PART_SUFFIX, RECORD_SUFFIX) and has_bytes:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def append_file(path: Path, name: str, sink: RowSink, folder: Path) -> tuple[int, int]:
    """Append the rows of a file to ``sink``; return the number of its first line there, and how many lines it gave.

    Raises:
        ConfigError, DataError: as :func:`osft.data.download.formats.copy_rows`.
    """
    before = sink.lines
    copy_rows(path, name, sink, folder)
    return before + 1, sink.lines - before


def with_retries(work: Callable[[], Result], size_bytes: Callable[[], int] = lambda: 0) -> Result:
    """Return what ``work`` returns, calling it again after a :class:`DownloadInterruptedError`.

    It gives up after :data:`ATTEMPTS` in a row that brought no byte more: a connection that breaks every few minutes
    still gets through a large file.

    Args:
        work: goes on, or starts afresh, with each call.
        size_bytes: how many bytes are here.

    Raises:
        DownloadInterruptedError: the last one.
        BaseException: any other error of ``work``, at once.
    """
    patience = _Patience(size_bytes)

    def log_attempt(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s Attempt %d failed; the next is in %.1f s", error, state.attempt_number, state.upcoming_sleep)

    retrying = Retrying(
        retry=retry_if_exception_type(DownloadInterruptedError),
        after=patience.count,
        wait=patience.wait_seconds,
        stop=patience.is_over,
        before_sleep=log_attempt,
        reraise=True,
    )
    return retrying(work)


class _Patience:
    """Counts attempts in a row that failed and brought nothing."""

    def __init__(self, size_bytes: Callable[[], int]) -> None:
        self._size_bytes = size_bytes
        self._most_bytes = size_bytes()
        self._failures = 0
        self._asked_seconds = 0.0

    def count(self, state: RetryCallState) -> None:
        """Take note of an attempt that failed."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, DownloadInterruptedError):
            self._asked_seconds = error.wait_seconds
        size_bytes = self._size_bytes()
        self._failures = 1 if size_bytes > self._most_bytes else self._failures + 1
        self._most_bytes = max(self._most_bytes, size_bytes)

    def wait_seconds(self, _state: RetryCallState) -> float:
        """Return the wait before the next attempt: what the server asked for, if that is longer than ours."""
        own_seconds = FIRST_WAIT_SECONDS * 2 ** (self._failures - 1)
        return min(max(own_seconds, self._asked_seconds), LONGEST_WAIT_SECONDS)

    def is_over(self, _state: RetryCallState) -> bool:
        """Return whether to give up."""
        return self._failures >= ATTEMPTS


def is_transient_status(status: int) -> bool:
    """Return whether an HTTP status may be another one next time."""
    return status in TRANSIENT_REFUSALS or (status >= FIRST_SERVER_ERROR and status not in LASTING_SERVER_ERRORS)
