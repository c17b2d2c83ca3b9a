"""One data file from a web server, through fsspec's HTTP filesystem.

Only GET is asked: presigned links answer nothing else. What the server says of the file is seen by a trace hook of
aiohttp before the first byte of the body is written, so that bytes of two versions never meet, and a body that is not
wanted is not read. Going on is RFC 9110's Range with If-Range, asking whether a file changed its If-None-Match, and
checksums are those of RFC 9530 and its predecessors.

Presigned links carry their secret in the query, and aiohttp's errors quote the whole URL: so errors are written anew
here and do not chain those.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import aiohttp
import fsspec
from fsspec.callbacks import Callback

from osft.data.download.fetching import (
    DownloadInterruptedError,
    FileOrigin,
    FileVersion,
    Part,
    append_file,
    is_transient_status,
    with_retries,
)
from osft.data.download.links import is_loopback, public_uri, redirect_is_allowed
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import split_suffix
from osft.data.download.web_headers import packed_name, read_version, retry_after_seconds, starts_at
from osft.errors import DownloadError

logger = logging.getLogger(__name__)

# Parts of a presigned link that are new each time it is signed; what it links to stays the same.
SIGNATURE_PARAMETER = re.compile(r"X-(Amz|Goog)-", re.IGNORECASE)
CONNECT_SECONDS = 30.0
SILENCE_SECONDS = 60.0
# OK, non-authoritative (a proxy changed something on the way), partial content.
STATUSES_OF_FILE = (200, 203, 206)
PARTIAL_CONTENT, NOT_MODIFIED, FIRST_ERROR, NOT_FOUND, RANGE_NOT_SATISFIABLE = 206, 304, 400, 404, 416
MENDS = {
    401: "Give a link that needs no sign-in, or a presigned one",
    403: "Check that the link may be read and that a presigned one has not expired",
    404: "Check its spelling",
}
OnHeaders = Callable[[int, Mapping[str, str]], None]


class _RedirectRefusedError(Exception):
    """Raised inside aiohttp, which takes no other way to stop before a redirect."""


class _NotTheFileError(Exception):
    """Raised inside aiohttp to stop before the body of an answer that is not the file."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class _RangeRefusedError(Exception):
    """The server has no bytes behind those that are here."""


class _HeadersSeenError(Exception):
    """Raised inside aiohttp to stop before a body that nobody asked for."""

    def __init__(self, *, is_current: bool) -> None:
        super().__init__()
        self.is_current = is_current


class _ByteCount(Callback):
    """Passes on how many bytes fsspec has written."""

    def __init__(self, show: Callable[[int], None]) -> None:
        super().__init__()
        self._show = show

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._show(inc)


@dataclass(frozen=True, kw_only=True, slots=True)
class WebSource:
    """A file behind ``https://``, or ``http://`` on this machine."""

    url: str = field(repr=False)
    """The whole link, secrets included; never logged."""

    @property
    def uri(self) -> str:
        """The link without its query, which may be a secret."""
        return public_uri(self.url)

    @property
    def identity(self) -> str:
        """The link without its signature: signed anew, it still names the same file."""
        parts = urlsplit(self.url)
        # Bytes that are no UTF-8 must not all become the same character.
        pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
        query = urlencode([pair for pair in pairs if not SIGNATURE_PARAMETER.match(pair[0])], errors="surrogateescape")
        return parts._replace(query=query, fragment="").geturl()

    def is_unchanged(self, files: Sequence[FileOrigin]) -> bool:
        """Ask whether the file is still the one that was fetched.

        Raises:
            DownloadError: if the server does not say.
        """
        if len(files) != 1:
            return False
        return with_retries(lambda: self._is_current(files[0]))

    def copy_rows(self, sink: RowSink, folder: Path) -> tuple[FileOrigin, ...]:
        """Fetch the file and append its rows.

        Raises:
            ConfigError: if the link's path does not end in a known suffix.
            DownloadError: if the server does not give the file, or it is not the one that the server speaks of.
            DataError: if the file is not what its suffix says.
        """
        name = _printable(PurePosixPath(unquote(urlsplit(self.url).path)).name)
        split_suffix(name)
        part = Part(folder, self.identity)
        with sink.progress.transfer(name) as show:
            with_retries(lambda: self._fetch(part, show), lambda: part.size_bytes)
        version = part.version or FileVersion()
        sha256 = part.check(self.uri)
        first_line, lines = append_file(part.path, packed_name(name, version.encoding, self.uri), sink, folder)
        origin = FileOrigin(
            name=name,
            size_bytes=part.size_bytes,
            etag=version.etag,
            last_modified=version.last_modified,
            validator=version.validator,
            sha256=sha256,
            first_line=first_line,
            lines=lines,
        )
        return (origin,)

    def _fetch(self, part: Part, show: Callable[[int, int | None], None]) -> None:
        """Try once to fetch what ``part`` lacks.

        Raises:
            DownloadInterruptedError: if asking again may mend it.
            DownloadError: if not.
        """
        known = part.version
        if known is not None and part.is_complete:
            if self._is_current(known):
                return
            part.clear()
            known = None
        headers = {}
        if known is not None and known.validator and part.size_bytes:
            headers = {"Range": f"bytes={part.size_bytes}-", "If-Range": known.validator}
            logger.info("%s: %d bytes of it are here; asking for the rest", self.uri, part.size_bytes)
        with part.path.open("ab") as file:
            arrival = _Arrival(part, file, show, self.uri)
            try:
                self._get(headers, file, arrival.begin, _ByteCount(arrival.advance))
            except _RangeRefusedError:
                arrival.start_again("the file is shorter than what was fetched of it before")
        arrival.end()

    def _is_current(self, known: FileOrigin | FileVersion) -> bool:
        """Try once to ask whether the file still is the ``known`` one; no body is read.

        Without an ETag nothing but a time that was long past says so: a file may change twice in one second, and
        If-Modified-Since calls an older file that took its place unchanged.

        Raises:
            DownloadError: as :meth:`_fetch`.
        """
        if not known.etag and not known.validator:
            return False
        headers = {"If-None-Match": known.etag} if known.etag else {}

        def stop(status: int, answer: Mapping[str, str]) -> None:
            if status == NOT_MODIFIED:
                raise _HeadersSeenError(is_current=bool(headers))
            # Not every server knows the condition; one that does not still tells the version.
            version = read_version(status, answer)
            is_current = (
                status in STATUSES_OF_FILE and version.validator == known.validator and _is_same(version, known)
            )
            raise _HeadersSeenError(is_current=is_current)

        try:
            self._get(headers, BytesIO(), stop, Callback())
        except _HeadersSeenError as seen:
            return seen.is_current
        return False

    def _get(self, headers: dict[str, str], file: IO[bytes], on_headers: OnHeaders, callback: Callback) -> None:
        """Ask for the file with ``headers`` and append the body to ``file``.

        Args:
            headers: of the request.
            file: where the body goes.
            on_headers: called with status and headers before the first byte; stops all by raising an error.
            callback: called with the number of bytes of each piece.

        Raises:
            _RangeRefusedError: if there is nothing of the range that ``headers`` ask for.
            DownloadInterruptedError: if asking again may mend it.
            DownloadError: if not.
        """
        try:
            _open_filesystem(self.url, on_headers).get_file(self.url, file, callback=callback, headers=headers)
        except FileNotFoundError:
            raise self._status_error(NOT_FOUND, {}) from None
        except _RedirectRefusedError as error:
            raise DownloadError(
                f"{self.uri}: the server answers {error} and redirects to a link that is not https, or to none. "
                "Give an https link to the file itself."
            ) from None
        except _NotTheFileError as error:
            raise self._status_error(error.status, {}) from None
        except aiohttp.ClientResponseError as error:
            if error.status == RANGE_NOT_SATISFIABLE and "Range" in headers:
                raise _RangeRefusedError from None
            raise self._status_error(error.status, error.headers or {}) from None
        except aiohttp.ClientSSLError:
            raise DownloadError(
                f"{self.uri}: the server's certificate is not trusted. Name its CA file in SSL_CERT_FILE."
            ) from None
        except aiohttp.InvalidURL:
            raise DownloadError(f"{self.uri}: this is no link, or the server redirects to one. Check it.") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = f"{self.uri}: the connection failed ({type(error).__name__}). Check host and network."
            raise DownloadInterruptedError(reason) from None

    def _status_error(self, status: int, headers: Mapping[str, str]) -> DownloadError:
        if is_transient_status(status):
            return DownloadInterruptedError(
                f"{self.uri}: the server answers {status}. Try again later.",
                wait_seconds=retry_after_seconds(headers, datetime.now(UTC)),
            )
        return DownloadError(f"{self.uri}: the server answers {status}. {MENDS.get(status, 'Check the link')}.")


class _Arrival:
    """The bytes of one answer on their way into a part."""

    def __init__(self, part: Part, file: IO[bytes], show: Callable[[int, int | None], None], uri: str) -> None:
        self._part = part
        self._file = file
        self._show = show
        self._uri = uri
        self._size_bytes = part.size_bytes
        self._total_bytes: int | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Go on with what is there if the answer does, or start again with a whole file."""
        if status not in STATUSES_OF_FILE:
            raise _NotTheFileError(status)
        version = read_version(status, headers)
        known = self._part.version
        if status != PARTIAL_CONTENT:
            self._file.truncate(0)
            self._size_bytes = 0
            self._part.record(version)
        elif known is None or starts_at(headers) != self._size_bytes or not _is_same(version, known):
            self.start_again("the server went on with another file")
        self._total_bytes = version.size_bytes

    def advance(self, size_bytes: int) -> None:
        """Count bytes that were written."""
        self._size_bytes += size_bytes
        self._show(self._size_bytes, self._total_bytes)

    def end(self) -> None:
        """Check the length.

        Raises:
            DownloadInterruptedError: if it is another than the server said.
        """
        version, size_bytes = self._part.version or FileVersion(), self._part.size_bytes
        if version.size_bytes is None:
            self._part.record(replace(version, size_bytes=size_bytes))
        elif size_bytes < version.size_bytes:
            raise DownloadInterruptedError(
                f"{self._uri}: {size_bytes} of {version.size_bytes} bytes arrived. Try again later."
            )
        elif size_bytes > version.size_bytes:
            self.start_again(f"{size_bytes} bytes arrived of a file of {version.size_bytes}")

    def start_again(self, reason: str) -> NoReturn:
        """Drop all bytes, for the next attempt to begin with none."""
        self._part.clear()
        raise DownloadInterruptedError(f"{self._uri}: {reason}. Try again later.")


def _is_same(version: FileVersion, known: FileOrigin | FileVersion) -> bool:
    """Return whether an answer is of the version that is known; it need not tell all."""
    return (
        version.etag == known.etag
        and version.last_modified in (None, known.last_modified)
        and version.size_bytes in (None, known.size_bytes)
    )


def _printable(name: str) -> str:
    """Return ``name`` with its control characters escaped: it goes to logs and errors of one line."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    """Stop before a redirect that would lose encryption; aiohttp also follows the header URI, which none needs."""
    target = params.response.headers.get("Location")
    if not target or not redirect_is_allowed(str(params.response.url), target):
        params.response.close()
        raise _RedirectRefusedError(params.response.status)


def _open_filesystem(url: str, on_headers: OnHeaders) -> fsspec.AbstractFileSystem:
    """Return fsspec's HTTP filesystem for one request for ``url``."""

    async def tell_headers(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        if params.response.status >= FIRST_ERROR:
            return
        try:
            on_headers(params.response.status, params.response.headers)
        except BaseException:
            # The body is not wanted: without this, the connection would wait for someone to read it.
            params.response.close()
            raise

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    trace.on_request_end.append(tell_headers)
    client = {
        "trace_configs": [trace],
        # aiohttp's own limit is five minutes for the whole file.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        # The bytes must be those of the file: a .gz file is not to be unpacked on the way.
        "headers": {"Accept-Encoding": "identity"},
        "auto_decompress": False,
        # Proxies of the environment; none stands between a machine and itself.
        "trust_env": not is_loopback(urlsplit(url).hostname or ""),
    }
    # A link with escapes, such as a presigned one, must be sent as it was signed.
    return fsspec.filesystem("http", client_kwargs=client, encoded="%" in url, skip_instance_cache=True)
