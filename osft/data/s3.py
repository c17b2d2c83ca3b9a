"""Data files from any S3 (AWS, MinIO, OpenShift Data Foundation), through s3fs.

The variables are those that a connection of Red Hat OpenShift AI puts into a pod: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_S3_ENDPOINT`` and ``AWS_DEFAULT_REGION``. botocore reads all but the endpoint itself.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import s3fs
from botocore.exceptions import BotoCoreError, HTTPClientError, NoCredentialsError, PartialCredentialsError

from osft.data.fetching import ByteProgress, FileOrigin, with_retries
from osft.data.formats import ALLOWED_SUFFIXES, RowSink, copy_rows, is_known
from osft.errors import DownloadError

Result = TypeVar("Result")
ENDPOINT_VARIABLE = "AWS_S3_ENDPOINT"
AWS_DOMAIN = ".amazonaws.com"


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Source:
    """An object, or every object of a known suffix below a prefix."""

    uri: str
    """``s3://bucket/key`` or ``s3://bucket/prefix``."""

    def copy_rows(self, sink: RowSink, scratch: Path) -> tuple[FileOrigin, ...]:
        """Fetch the objects one by one, in the order of their keys, and append their rows.

        Raises:
            ConfigError: if the object's suffix is not known.
            DownloadError: if the store does not give the objects, or there is none.
            DataError: if an object is not what its suffix says.
        """
        store = _open_store()
        path = self.uri.removeprefix("s3://").rstrip("/")
        objects = self._ask(lambda: _list_objects(store, path))
        if not objects:
            raise DownloadError(f"{self.uri}: no object below it has a known suffix. Allowed are {ALLOWED_SUFFIXES}.")
        return tuple(self._copy_object(store, entry, path, sink, scratch) for entry in objects)

    def _copy_object(
        self, store: s3fs.S3FileSystem, entry: dict[str, Any], path: str, sink: RowSink, scratch: Path
    ) -> FileOrigin:
        key, target = entry["name"], scratch / "download"
        name = key.removeprefix(path).lstrip("/") or key.rpartition("/")[2]
        self._ask(lambda: store.get_file(key, str(target), callback=ByteProgress("fetched")))
        size_bytes = target.stat().st_size
        if size_bytes != entry["size"]:
            raise DownloadError(f"{self.uri}: {name} has {size_bytes} of {entry['size']} bytes. Try again.")
        copy_rows(target, name, sink, scratch)
        changed = entry.get("LastModified")
        return FileOrigin(
            name=name,
            size_bytes=size_bytes,
            etag=entry.get("ETag"),
            last_modified=changed.isoformat() if changed else None,
        )

    def _ask(self, request: Callable[[], Result]) -> Result:
        """Make a request, again after transient errors.

        Raises:
            DownloadError: with the reason and the mend.
        """
        try:
            return with_retries(request, _is_transient, self.uri)
        except FileNotFoundError as error:
            raise DownloadError(f"{self.uri}: the store has no such bucket or key. Check the spelling.") from error
        except PermissionError as error:
            raise DownloadError(
                f"{self.uri}: the store refuses access. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                "and the rights of that key."
            ) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DownloadError(
                f"{self.uri}: there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        except (OSError, BotoCoreError) as error:
            raise DownloadError(
                f"{self.uri}: the store cannot be read ({type(error).__name__}: {error}). "
                f"Check {ENDPOINT_VARIABLE} and AWS_DEFAULT_REGION."
            ) from error


def _open_store() -> s3fs.S3FileSystem:
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    if not endpoint:
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    # Data science connections often name the host only.
    url = endpoint if "://" in endpoint else f"https://{endpoint}"
    # Stores other than AWS seldom have a DNS name for each bucket.
    style = "auto" if AWS_DOMAIN in url else "path"
    return s3fs.S3FileSystem(
        endpoint_url=url,
        config_kwargs={"s3": {"addressing_style": style}},
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def _list_objects(store: s3fs.S3FileSystem, path: str) -> list[dict[str, Any]]:
    """Return the object at ``path``, or those of a known suffix below it in the order of their keys."""
    entry = store.info(path)
    if entry["type"] == "file":
        return [entry]
    found = store.find(path, detail=True)
    return [found[key] for key in sorted(found) if is_known(key)]


def _is_transient(error: BaseException) -> bool:
    """Return whether asking again may help; s3fs turns the store's answers into errors of the operating system."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, OSError | HTTPClientError)
