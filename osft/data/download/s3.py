"""Data files from any S3 (AWS, MinIO, OpenShift Data Foundation), through s3fs.

The variables are those that a connection of Red Hat OpenShift AI puts into a pod: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_S3_ENDPOINT``, ``AWS_DEFAULT_REGION`` and ``AWS_S3_BUCKET``. botocore reads the keys
and the region itself.

An object is read as one stream, from where an earlier one broke off, under the condition that its ETag is still the
same. s3fs's own ``get_file`` starts over, and holds up to ten pieces of 50 MB in memory.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import s3fs
from aiohttp import ClientError as ConnectionBrokenError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url
from fsspec.asyn import sync

from osft.data.download.fetching import (
    DISK_FULL_ERRORS,
    DownloadInterruptedError,
    FileOrigin,
    FileVersion,
    Part,
    append_file,
    is_transient_status,
    with_retries,
)
from osft.data.download.local import EVERY_FILE, matches_pattern
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import ALLOWED_SUFFIXES, is_known
from osft.data.download.web_headers import hexadecimal, packed_name, starts_at
from osft.errors import ConfigError, DownloadError, one_line

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ENDPOINT_VARIABLE, BUCKET_VARIABLE = "AWS_S3_ENDPOINT", "AWS_S3_BUCKET"
AWS_DOMAIN = ".amazonaws.com"
# What a connection that breaks may lose.
BLOCK_BYTES = 1 << 17
# Of an object that was uploaded in one piece; one of several has a hyphen and says nothing of the bytes.
MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
SHA256_BYTES = 32
# Encryption under which an ETag still is the MD5 of the bytes.
PLAIN_ENCRYPTION = (None, "AES256")
# How an upload was sent; some stores keep it in the header, and the object is not packed that way.
UPLOAD_ENCODING = "aws-chunked"
# What stores say with status 400, and yet may not say next time.
TRANSIENT_CODES = ("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout")
UNAUTHORIZED, PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE = 401, 412, 416
Show = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Source:
    """An object, or every object of a known suffix below a prefix or of a pattern."""

    uri: str
    """``s3://bucket/key``, ``s3://bucket/prefix`` or ``s3://bucket/*.jsonl``."""

    @classmethod
    def parse(cls, uri: str) -> "S3Source":
        """Read an S3 URI; ``s3:///key`` is in the bucket of the environment.

        Raises:
            ConfigError: if there is no bucket.
        """
        path = uri.partition("://")[2]
        bucket, _, key = path.partition("/")
        bucket = bucket or os.environ.get(BUCKET_VARIABLE, "")
        if not bucket:
            raise ConfigError(f"'{uri}' names no bucket; give s3://bucket/key, or set {BUCKET_VARIABLE}.")
        return cls(uri=f"s3://{bucket}/{key}")

    @property
    def identity(self) -> str:
        """The URI, and the store that it is looked up in."""
        return f"{os.environ.get(ENDPOINT_VARIABLE, '')} {self.uri}"

    def is_unchanged(self, files: Sequence[FileOrigin]) -> bool:
        """Return whether the store lists the same objects, by name, size and ETag.

        Raises:
            DownloadError: if the store does not list them.
        """
        objects = self._list(_open_store())
        found = [(self._name(entry), entry["size"], entry.get("ETag")) for entry in objects]
        return found == [(file.name, file.size_bytes, file.etag) for file in files]

    def copy_rows(self, sink: RowSink, folder: Path) -> tuple[FileOrigin, ...]:
        """Fetch the objects one by one, in the order of their keys, and append their rows.

        Raises:
            ConfigError: if the object's suffix is not known.
            DownloadError: if the store does not give the objects, or there is none.
            DataError: if an object is not what its suffix says.
        """
        store = _open_store()
        return tuple(self._copy_object(store, entry, sink, folder) for entry in self._list(store))

    def _list(self, store: s3fs.S3FileSystem) -> list[dict[str, Any]]:
        """Return the objects in the order of their keys."""
        objects = with_retries(lambda: self._ask(lambda: _list_objects(store, self._path)))
        if not objects:
            raise DownloadError(f"{self.uri}: no object of it has a known suffix. Allowed are {ALLOWED_SUFFIXES}.")
        return objects

    @property
    def _path(self) -> str:
        return self.uri.removeprefix("s3://")

    def _name(self, entry: dict[str, Any]) -> str:
        """Return an object's key, relative to the prefix or to the folder before a pattern, fit to be shown."""
        root = self._path.rstrip("/")
        if entry["name"] != root and has_magic(root):
            root, _ = _split_pattern(root)
        return _printable(entry["name"].removeprefix(root).lstrip("/") or entry["name"].rpartition("/")[2])

    def _copy_object(self, store: s3fs.S3FileSystem, entry: dict[str, Any], sink: RowSink, folder: Path) -> FileOrigin:
        name = self._name(entry)
        part = Part(folder, f"{self.identity}\0{entry['name']}")
        with sink.progress.transfer(name) as show:
            with_retries(lambda: self._ask(lambda: self._fetch(store, entry, part, show)), lambda: part.size_bytes)
        version = part.version or FileVersion()
        sha256 = part.check(f"{self.uri}: {name}")
        first_line, lines = append_file(part.path, packed_name(name, version.encoding, self.uri), sink, folder)
        return FileOrigin(
            name=name,
            size_bytes=part.size_bytes,
            etag=version.etag,
            last_modified=version.last_modified,
            sha256=sha256,
            first_line=first_line,
            lines=lines,
        )

    def _fetch(self, store: s3fs.S3FileSystem, entry: dict[str, Any], part: Part, show: Show) -> None:
        """Try once to fetch what ``part`` lacks of the object as it is now."""
        known = part.version
        if known and part.is_complete and (known.etag, known.size_bytes) == (entry.get("ETag"), entry["size"]):
            return
        bucket, _, key = entry["name"].partition("/")
        version = _read_version(store.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
        if known is None or (known.etag, known.size_bytes) != (version.etag, version.size_bytes):
            part.start(version)
        if part.is_complete:
            return
        if part.size_bytes:
            logger.info(
                "%s: %d bytes of %s are here; asking for the rest", self.uri, part.size_bytes, self._name(entry)
            )
        try:
            _stream(store, {"Bucket": bucket, "Key": key}, version, part, show)
        except FlexibleChecksumError as error:
            part.clear()
            raise DownloadError(
                f"{self.uri}: {self._name(entry)} did not arrive as the store has it ({one_line(error)}). Try again."
            ) from error
        except OSError as error:
            if _status(error) not in (PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE):
                raise
            part.clear()
            raise _interrupted(f"{self.uri}: {self._name(entry)} was replaced while it was fetched") from error
        if part.size_bytes > (version.size_bytes or 0):
            part.clear()
        if not part.is_complete:
            raise _interrupted(
                f"{self.uri}: {part.size_bytes} of {version.size_bytes} bytes of {self._name(entry)} arrived"
            )

    def _ask(self, request: Callable[[], Result]) -> Result:
        """Make a request once.

        Raises:
            DownloadInterruptedError: if asking again may mend it.
            DownloadError: if not.
        """
        try:
            return request()
        except FileNotFoundError as error:
            raise DownloadError(
                f"{self.uri}: the store has no such bucket or key, or none matches. Check the spelling."
            ) from error
        except SSLError as error:
            raise DownloadError(
                f"{self.uri}: the store's certificate is not trusted. Name its CA file in AWS_CA_BUNDLE."
            ) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DownloadError(
                f"{self.uri}: there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        except (OSError, BotoCoreError, ConnectionBrokenError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                raise
            if isinstance(error, PermissionError) or _status(error) == UNAUTHORIZED:
                raise DownloadError(
                    f"{self.uri}: the store refuses access. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                    "and the rights of that key."
                ) from error
            kind = DownloadInterruptedError if _is_transient(error) else DownloadError
            raise kind(
                f"{self.uri}: the store cannot be read ({type(error).__name__}: {_printable(one_line(error))}). "
                f"Check {ENDPOINT_VARIABLE} and AWS_DEFAULT_REGION."
            ) from error


def _open_store() -> s3fs.S3FileSystem:
    # Attempts are counted and logged in one place, which is not here.
    config: dict[str, Any] = {"retries": {"total_max_attempts": 1}}
    url = _endpoint()
    if url:
        # Stores other than AWS seldom have a DNS name for each bucket.
        config["s3"] = {"addressing_style": "auto" if AWS_DOMAIN in url else "path"}
    store = s3fs.S3FileSystem(
        endpoint_url=url, config_kwargs=config, skip_instance_cache=True, use_listings_cache=False
    )
    store.retries = 1
    return store


def _endpoint() -> str | None:
    """Return the store's URL; ``None`` for AWS.

    Raises:
        ConfigError: if the environment gives something else than a URL.
    """
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    if not endpoint:
        return None
    # Data science connections often name the host only.
    url = endpoint if "://" in endpoint else f"https://{endpoint}"
    try:
        # Reading the port checks it.
        is_web = urlsplit(url).scheme in ("http", "https") and urlsplit(url).port != 0
        is_valid = is_web and (is_valid_endpoint_url(url) or is_valid_ipv6_endpoint_url(url))
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{ENDPOINT_VARIABLE} is {endpoint!a}, which is no URL. Set it to https://host.")
    return url


def _list_objects(store: s3fs.S3FileSystem, path: str) -> list[dict[str, Any]]:
    """Return the object at ``path``, or those of a known suffix below it or of its pattern, in the order of keys.

    Raises:
        FileNotFoundError: if there is no object at all.
    """
    if not path.endswith("/") and (entry := _find_object(store, path)):
        return [entry]
    found = _find_below(store, path.rstrip("/"), EVERY_FILE)
    # A key may hold the characters of a pattern: it is one only where no such key exists.
    if not found and has_magic(path):
        found = _find_below(store, *_split_pattern(path.rstrip("/")))
    if not found:
        raise FileNotFoundError(path)
    return [entry for entry in found if is_known(_printable(entry["name"]))]


def _find_object(store: s3fs.S3FileSystem, path: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = store.info(path)
    except FileNotFoundError:
        # Then it is a prefix or a pattern, if anything.
        return None
    return entry if entry["type"] == "file" else None


def _find_below(store: s3fs.S3FileSystem, prefix: str, pattern: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects whose keys match ``pattern`` below ``prefix``, hidden ones left out as in a folder.

    Not s3fs's own glob: an object whose key is also the prefix of others is lost in it.
    """
    bucket, _, folder = f"{prefix}/".partition("/")
    return [
        entry
        for key, entry in sorted(store.find(bucket, prefix=folder, detail=True).items())
        if matches_pattern(key.removeprefix(f"{prefix}/").split("/"), pattern)
    ]


def _split_pattern(path: str) -> tuple[str, list[str]]:
    """Return what is before the first part with a wildcard, and the parts from there on."""
    parts = path.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:fixed]), parts[fixed:]


def _printable(text: str) -> str:
    """Return ``text`` with an escape for each character that a terminal or a log would not show as itself."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _read_version(head: dict[str, Any]) -> FileVersion:
    """Return the version that the answer to a HEAD is of."""
    digests = {}
    # The checksum of an object of several parts is none of its bytes, and ends in their number.
    if sha256 := hexadecimal(head.get("ChecksumSHA256", ""), SHA256_BYTES):
        digests["sha256"] = sha256
    etag = head.get("ETag", "")
    encrypted = head.get("ServerSideEncryption") not in PLAIN_ENCRYPTION or "SSECustomerAlgorithm" in head
    if (match := MD5_ETAG.fullmatch(etag)) and not encrypted:
        digests["md5"] = match[1]
    changed = head.get("LastModified")
    return FileVersion(
        etag=etag,
        last_modified=changed.isoformat() if changed else None,
        size_bytes=head["ContentLength"],
        validator=etag,
        encoding=_encoding(head.get("ContentEncoding", "")),
        digests=digests,
    )


def _encoding(header: str) -> str | None:
    """Return how the object is packed beyond what its key says."""
    encodings = [encoding.strip() for encoding in header.split(",")]
    return ", ".join(encoding for encoding in encodings if encoding.lower() not in ("", UPLOAD_ENCODING)) or None


def _stream(store: s3fs.S3FileSystem, place: dict[str, str], version: FileVersion, part: Part, show: Show) -> None:
    """Append what ``part`` lacks of the object, a block at a time.

    Raises:
        DownloadInterruptedError: if the store sends another object, or another piece of it.
        OSError, BotoCoreError: what s3fs raises.
    """
    size_bytes = part.size_bytes
    piece = {"Range": f"bytes={size_bytes}-"} if size_bytes else {}
    answer = store.call_s3("get_object", **place, IfMatch=version.etag, **piece)
    body = answer["Body"]
    try:
        is_whole = "ContentRange" not in answer
        if answer.get("ETag") != version.etag or not (
            is_whole or starts_at({"Content-Range": answer["ContentRange"]}) == size_bytes
        ):
            part.clear()
            raise _interrupted(f"{_printable(place['Key'])}: the store sends another object, or another piece of it")
        with part.path.open("wb" if is_whole else "ab") as file:
            size_bytes = 0 if is_whole else size_bytes
            while block := sync(store.loop, body.read, BLOCK_BYTES):
                file.write(block)
                size_bytes += len(block)
                show(size_bytes, version.size_bytes)
    finally:
        sync(store.loop, _close, body)


async def _close(body: Any) -> None:
    """Hang up; in the loop of the connection, which belongs to that thread."""
    body.close()


def _interrupted(reason: str) -> DownloadInterruptedError:
    return DownloadInterruptedError(f"{reason}. Try again later.")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of s3fs."""
    return answer["ResponseMetadata"]["HTTPStatusCode"] if (answer := _answer(error)) else None


def _answer(error: BaseException) -> Any:
    """Return the store's answer behind an error of s3fs, which translates it; ``None`` if there is none."""
    return error.__cause__.response if isinstance(error.__cause__, ClientError) else None


def _is_transient(error: BaseException) -> bool:
    """Return whether asking again may help."""
    if answer := _answer(error):
        code = answer["Error"].get("Code")
        return code in TRANSIENT_CODES or is_transient_status(answer["ResponseMetadata"]["HTTPStatusCode"])
    return isinstance(
        error, OSError | HTTPClientError | NoConnectionError | IncompleteReadError | ConnectionBrokenError
    )
