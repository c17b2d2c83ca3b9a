"""Links to the web as text: which ones are asked for, and what of them may be stored and logged.

Pure functions over text; nothing is fetched here.
"""

import re
from ipaddress import ip_address
from urllib.parse import urljoin, urlsplit

from osft.errors import ConfigError

WEB_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# What was meant as a link and is none, such as a quoted one; it may hold a secret all the same.
BROKEN_LINK = re.compile(r"\W*https?:(?!//)|\W+https?:|//[^/]*@", re.IGNORECASE)
# aiohttp and the resolver read these in other ways than urlsplit, or fail.
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
UNREADABLE_LINK = "(a link that cannot be read)"


def public_uri(uri: str) -> str:
    """Return ``uri`` as it may be stored and logged.

    A web link loses its query and what stands before ``@``, what only looks like a link is left out, and anything else
    stays as it is.
    """
    uri = uri.strip()
    if BROKEN_LINK.match(uri):
        return UNREADABLE_LINK
    if not WEB_SCHEME.match(uri):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        # No host can be told from the rest, nor a secret.
        return UNREADABLE_LINK
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def check_url(url: str) -> None:
    """Refuse a link that is neither ``https://`` nor ``http://`` to this machine.

    Raises:
        ConfigError: if it is one, or names no host, or cannot be read.
    """
    try:
        host = _read_host(url)
    except ValueError:
        # Not repeated or chained: it may quote a secret.
        raise ConfigError(
            "the dataset URI cannot be read. Check its host, its port and for control characters."
        ) from None
    if not host:
        raise ConfigError("the dataset URI has no host name; give https://host/path.")
    if not _is_safe(url):
        raise ConfigError(f"'{public_uri(url)}': http is not encrypted and allowed on loopback only. Use https.")


def _read_host(url: str) -> str:
    """Return the host of ``url``, empty if there is none.

    Raises:
        ValueError: if a part of the link cannot be read.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    # Labels that are too long, and a port that is none, are refused no earlier than when they are asked for.
    host.encode("idna")
    if parts.port == 0 or CONTROL_CHARACTER.search(url):
        raise ValueError
    return host


def redirect_is_allowed(source: str, target: str) -> bool:
    """Return whether a redirect keeps the encryption that ``source`` has, and stays on this machine without one."""
    try:
        target = urljoin(source, target)
        return urlsplit(target).scheme == "https" if urlsplit(source).scheme == "https" else _is_safe(target)
    except ValueError:
        # No link at all.
        return False


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
