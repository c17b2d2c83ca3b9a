"""What the headers of an HTTP answer say of a file: its version, its length, its checksums, how it is packed.

RFC 9110 (ranges and validators) and RFC 9530 (Repr-Digest, which replaced Digest). Content-MD5 is long obsolete and
still what several object stores send. A header that cannot be read says nothing.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from osft.data.download.fetching import FileVersion
from osft.data.download.suffixes import split_suffix
from osft.errors import DownloadError

PARTIAL_CONTENT = 206
CONTENT_RANGE = re.compile(r"bytes (?P<start>\d{1,18})-\d+/(?P<total>\d{1,18}|\*)", re.IGNORECASE | re.ASCII)
LENGTH = re.compile(r"\d{1,18}", re.ASCII)
# An ETag of no characters names no version.
EMPTY_ETAGS = ('""', 'W/""')
# Between colons in Repr-Digest, without in Digest.
SHA256_DIGEST = re.compile(r"(?:^|[,\s])sha-256=:?(?P<base64>[A-Za-z0-9+/]+=*)", re.IGNORECASE | re.ASCII)
DIGEST_BYTES = {"sha256": 32, "md5": 16}
# A file may change twice in the second that a time is told in (RFC 9110, section 8.8.2.2); clocks differ by some more.
STRONG_TIME = timedelta(seconds=60)
PACKED_SUFFIXES = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst"}


def read_version(status: int, headers: Mapping[str, str]) -> FileVersion:
    """Return the version of the file that an answer is of, whole or in part."""
    return FileVersion(
        etag=_etag(headers),
        last_modified=_text(headers, "Last-Modified"),
        size_bytes=_size_bytes(status, headers),
        validator=_validator(headers),
        encoding=_text(headers, "Content-Encoding"),
        digests=_digests(status, headers),
    )


def starts_at(headers: Mapping[str, str]) -> int | None:
    """Return the offset of the first byte of a part, or ``None`` if its Content-Range does not say."""
    match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    return int(match["start"]) if match else None


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """Return how long a server asks to wait, in seconds or as a time, 0 if it does not.

    Args:
        headers: of its answer.
        now: the time, with its zone.
    """
    value = headers.get("Retry-After", "").strip()
    if LENGTH.fullmatch(value):
        return float(value)
    until = _time(value)
    return max(0.0, (until - now).total_seconds()) if until else 0.0


def packed_name(name: str, encoding: str | None, uri: str) -> str:
    """Return ``name`` with the suffix of the packing that the server put on top, if it did although not asked to.

    Raises:
        DownloadError: if it is one that cannot be unpacked here.
    """
    encoding = (encoding or "identity").strip().lower()
    if encoding == "identity":
        return name
    suffix = PACKED_SUFFIXES.get(encoding)
    if suffix is None:
        raise DownloadError(f"{uri}: the server packs the file as '{encoding}'. Store it unpacked, or as .gz or .zst.")
    # Stores keep the header that a packed file was uploaded with: it then is packed once, not twice.
    return name if split_suffix(name)[1] == suffix else name + suffix


def _size_bytes(status: int, headers: Mapping[str, str]) -> int | None:
    """Return the size of the whole file."""
    if status == PARTIAL_CONTENT:
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        return int(match["total"]) if match and match["total"] != "*" else None
    length = headers.get("Content-Length", "")
    return int(length) if LENGTH.fullmatch(length) else None


def _text(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header's value; one with other characters than ASCII could be neither stored nor sent back."""
    value = headers.get(name)
    return value if value and value.isascii() else None


def _etag(headers: Mapping[str, str]) -> str | None:
    etag = _text(headers, "ETag")
    return None if etag in EMPTY_ETAGS else etag


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what If-Range may name the version by: a strong ETag, or where there is none a time that is long past."""
    if etag := _etag(headers):
        return None if etag.startswith("W/") else etag
    last_modified = _text(headers, "Last-Modified")
    changed, sent = _time(last_modified or ""), _time(headers.get("Date", ""))
    if changed is None or sent is None or sent - changed < STRONG_TIME:
        return None
    return last_modified


def _digests(status: int, headers: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for header in ("Repr-Digest", "Digest"):
        if match := SHA256_DIGEST.search(headers.get(header, "")):
            found["sha256"] = match["base64"]
            break
    # Unlike the others, it is of the bytes of this very answer.
    if status != PARTIAL_CONTENT:
        found["md5"] = headers.get("Content-MD5", "")
    return {name: digest for name, text in found.items() if (digest := hexadecimal(text, DIGEST_BYTES[name]))}


def hexadecimal(base64: str, size_bytes: int) -> str | None:
    """Return a digest of ``size_bytes`` in hexadecimal digits, or ``None`` if ``base64`` is none."""
    try:
        digest = b64decode(base64, validate=True)
    except (binascii.Error, ValueError):
        # Not a checksum: there is nothing to compare with.
        return None
    return digest.hex() if len(digest) == size_bytes else None


def _time(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        # Not a time: then the server gives none.
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
