"""One data file from a web server, through fsspec's HTTP filesystem.

Presigned links carry their secret in the query, and aiohttp's errors quote the whole URL: so errors are written anew
here and do not chain those.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
import fsspec

from osft.data.fetching import ByteProgress, FileOrigin, is_transient_status, with_retries
from osft.data.formats import RowSink, copy_rows, split_suffix
from osft.errors import ConfigError, DownloadError

WEB_SCHEME = re.compile(r"https?:", re.IGNORECASE)
CONNECT_SECONDS = 30.0
SILENCE_SECONDS = 60.0
MENDS = {
    401: "Give a link that needs no sign-in, or a presigned one",
    403: "Check that the link may be read and that a presigned one has not expired",
    404: "Check its spelling",
}


class _RedirectRefusedError(Exception):
    """Raised inside aiohttp, which takes no other way to stop before a redirect."""


def public_uri(uri: str) -> str:
    """Return ``uri`` as it may be stored and logged: a web link without its query, anything else as it is."""
    if not WEB_SCHEME.match(uri):
        return uri
    return urlsplit(uri)._replace(query="", fragment="").geturl()


@dataclass(slots=True)
class _Answer:
    """What the server said about the file, filled by aiohttp's trace hooks."""

    etag: str | None = None
    last_modified: str | None = None

    async def on_end(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        self.etag = params.response.headers.get("ETag")
        self.last_modified = params.response.headers.get("Last-Modified")

    async def on_redirect(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        target = urljoin(str(params.response.url), params.response.headers.get("Location", ""))
        if not redirect_is_allowed(str(params.response.url), target):
            raise _RedirectRefusedError


@dataclass(frozen=True, kw_only=True, slots=True)
class WebSource:
    """A file behind ``https://``, or ``http://`` on this machine."""

    url: str = field(repr=False)
    """The whole link, secrets included; never logged."""

    @property
    def uri(self) -> str:
        """The link without its query, which may be a secret."""
        return public_uri(self.url)

    def copy_rows(self, sink: RowSink, scratch: Path) -> tuple[FileOrigin, ...]:
        """Fetch the file and append its rows.

        Raises:
            ConfigError: if the link's path does not end in a known suffix.
            DownloadError: if the server does not give the file.
            DataError: if the file is not what its suffix says.
        """
        name = PurePosixPath(unquote(urlsplit(self.url).path)).name
        split_suffix(name)
        target = scratch / "download"
        answer = with_retries(lambda: self._fetch(target), _is_transient, self.uri)
        copy_rows(target, name, sink, scratch)
        size_bytes = target.stat().st_size
        return (FileOrigin(name=name, size_bytes=size_bytes, etag=answer.etag, last_modified=answer.last_modified),)

    def _fetch(self, target: Path) -> _Answer:
        """Try once to write the file to ``target``.

        Raises:
            DownloadError: for an error that asking again cannot mend.
            aiohttp.ClientError: for others, as well as TimeoutError.
        """
        answer = _Answer()
        try:
            _open_filesystem(self.url, answer).get_file(self.url, str(target), callback=ByteProgress("fetched"))
        except FileNotFoundError:
            raise self._status_error(404) from None
        except _RedirectRefusedError:
            raise DownloadError(
                f"{self.uri}: the server redirects to a link that is not https. Give an https link to the file itself."
            ) from None
        except aiohttp.ClientResponseError as error:
            if is_transient_status(error.status):
                raise DownloadInterruptedError(self._status_error(error.status)) from None
            raise self._status_error(error.status) from None
        except aiohttp.ClientSSLError:
            raise DownloadError(
                f"{self.uri}: the server's certificate is not trusted. Name its CA file in SSL_CERT_FILE."
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = f"{self.uri}: the connection failed ({type(error).__name__}). Check host and network."
            raise DownloadInterruptedError(reason) from None
        return answer

    def _status_error(self, status: int) -> DownloadError:
        mend = MENDS.get(status, "Try again later" if is_transient_status(status) else "Check the link")
        return DownloadError(f"{self.uri}: the server answers {status}. {mend}.")


class DownloadInterruptedError(DownloadError):
    """A download that may work when it is tried again."""


def check_url(url: str) -> None:
    """Refuse a link that is neither ``https://`` nor ``http://`` to this machine.

    Raises:
        ConfigError: if it is one, or names no host.
    """
    if not urlsplit(url).hostname:
        raise ConfigError("the dataset URI has no host name; give https://host/path.")
    if not _is_safe(url):
        raise ConfigError(f"'{WebSource(url=url).uri}': http is not encrypted and allowed on loopback only. Use https.")


def redirect_is_allowed(source: str, target: str) -> bool:
    """Return whether a redirect keeps the encryption that ``source`` has, and stays on this machine without one."""
    if urlsplit(source).scheme == "https":
        return urlsplit(target).scheme == "https"
    return _is_safe(target)


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or ""))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, DownloadInterruptedError)


def _open_filesystem(url: str, answer: _Answer) -> fsspec.AbstractFileSystem:
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(answer.on_redirect)
    trace.on_request_end.append(answer.on_end)
    client = {
        "trace_configs": [trace],
        # aiohttp's own limit is five minutes for the whole file.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        # The bytes must be those of the file: a .gz file is not to be unpacked on the way.
        "headers": {"Accept-Encoding": "identity"},
        # Proxies of the environment; none stands between a machine and itself.
        "trust_env": not _is_loopback(urlsplit(url).hostname or ""),
    }
    # A link with escapes, such as a presigned one, must be sent as it was signed.
    return fsspec.filesystem("http", client_kwargs=client, encoded="%" in url, skip_instance_cache=True)
