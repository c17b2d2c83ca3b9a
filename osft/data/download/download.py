"""A dataset's URI to rows in one JSON Lines file.

    pvc://relative/path             a file, a folder or a pattern inside the workspace
    /absolute/path, relative/path   a file, a folder or a pattern of this machine
    hf://name[:config][@revision]   the training split of a dataset on the Hugging Face Hub
    https://host/path               one file (http:// to this machine only)
    s3://bucket/key                 an object, every object below a prefix, or those of a pattern

Which files are data is told by their suffix (:mod:`osft.data.download.suffixes`); of a folder, prefix or pattern all
such files are taken, in the order of their names. Nothing is mended here: lines of JSON Lines files stay byte for byte,
and validation judges them. The file appears when it is whole.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from osft.content_cache import link_files
from osft.data.download.fetching import DISK_FULL_ERRORS, FileOrigin, RowSource, keep_parts
from osft.data.download.local import LocalSource, open_local
from osft.data.download.row_sink import RowSink
from osft.data.download.web import WebSource, check_url
from osft.data.files import ROWS_NAME, SOURCE_NAME
from osft.errors import ConfigError, DataError, DownloadError
from osft.workspace import Workspace, atomic_file, has_size, read_json, write_json

logger = logging.getLogger(__name__)

DOWNLOAD_FOLDER, LOCK_NAME = ".download", ".download.lock"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):", re.IGNORECASE)
ALLOWED_SCHEMES = "pvc://, hf://, https://, s3:// and plain paths"


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadReport:
    """Where the rows came from and what was written; saved as ``source.json``."""

    uri: str
    """Without credentials: the query of a web link is left out."""

    identity_sha256: str
    """Hash of what tells this source from every other one, such as the whole link and the store's address."""

    rows: int
    """Lines that are not blank."""

    size_bytes: int
    """Size of ``rows.jsonl``."""

    sha256: str
    """Of ``rows.jsonl``."""

    revision: str | None
    """Commit of a hub's dataset."""

    etag: str | None
    """Of the file, if the source is a single one that has an ETag."""

    last_modified: str | None
    """The same for the time of its last change, as the source writes it."""

    files: tuple[FileOrigin, ...]

    unchanged: bool = False
    """Whether all was there from an earlier call; not saved."""


def download_dataset(uri: str, output: Path, *, workspace: Workspace | None = None) -> DownloadReport:
    """Write the rows behind ``uri`` to ``output/rows.jsonl``, and where they came from to ``output/source.json``.

    Where both are there from an earlier call and the source did not change since, nothing is fetched or written. What
    a call that failed has fetched lies in ``output/.download``, for the next one to go on with.

    Args:
        uri: the dataset; credentials come from the environment, never from here.
        output: folder for the two files; created if missing.
        workspace: where ``pvc://`` looks; the one of the environment if not given.

    Raises:
        ConfigError: if the URI has a form that is not allowed, or its file a suffix that is not known.
        MissingPathError: if a local path does not exist.
        WorkspaceError: if a ``pvc://`` path leaves the workspace.
        DownloadError: if a server does not give the data, or the disk is full.
        DataError: if a file is damaged, or there are no rows.
    """
    source = open_source(uri, workspace)
    with _alone_in(output, source):
        return _download_if_changed(source, output)


def download_into_run(uri: str, directory: Path, workspace: Workspace) -> DownloadReport:
    """Do what :func:`download_dataset` does, in a folder of the workspace that outlives the run, and link both files.

    So a run that starts on an unchanged source fetches nothing, and one that takes over from a lost pod goes on with
    what that pod fetched.

    Args:
        uri: the dataset.
        directory: folder of the run for ``rows.jsonl`` and ``source.json``.
        workspace: where the folder lies, and where ``pvc://`` looks.

    Raises:
        OsftError: as :func:`download_dataset`.
    """
    source = open_source(uri, workspace)
    output = workspace.datasets / _hash_identity(source)
    # Linked before the next one may replace them: rows and report belong together.
    with _alone_in(output, source):
        report = _download_if_changed(source, output)
        link_files([output / ROWS_NAME, output / SOURCE_NAME], directory)
    return report


def _download_if_changed(source: RowSource, output: Path) -> DownloadReport:
    earlier = _read_report(output, source)
    if earlier is not None and source.is_unchanged(earlier.files):
        logger.info("%s is unchanged since it was fetched; nothing to do", source.uri)
        return replace(earlier, unchanged=True)
    try:
        return _download(source, output)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise DownloadError(
            f"{output}: there is no room for {source.uri} ({error.strerror}). Make room and try again: what was "
            "fetched is not fetched again."
        ) from error


def _download(source: RowSource, output: Path) -> DownloadReport:
    """Fetch the source whole and write both files."""
    with _download_folder(output) as folder:
        with atomic_file(folder / ROWS_NAME) as file:
            sink = RowSink(file)
            with sink.progress:
                origins = source.copy_rows(sink, folder)
            if sink.progress.rows == 0:
                raise DataError(f"{source.uri}: there are no rows in it. Give a dataset that has some.")
        # Should this process end here, no report speaks of other rows than those beside it.
        (output / SOURCE_NAME).unlink(missing_ok=True)
        (folder / ROWS_NAME).replace(output / ROWS_NAME)
        only = origins[0] if len(origins) == 1 else FileOrigin(name="")
        report = DownloadReport(
            uri=source.uri,
            identity_sha256=_hash_identity(source),
            rows=sink.progress.rows,
            size_bytes=sink.progress.size_bytes,
            sha256=sink.sha256,
            revision=only.revision,
            etag=only.etag,
            last_modified=only.last_modified,
            files=origins,
        )
        stored = asdict(report)
        del stored["unchanged"]
        write_json(output / SOURCE_NAME, stored)
    sink.progress.log()
    return report


def _read_report(output: Path, source: RowSource) -> DownloadReport | None:
    """Return what an earlier call left in ``output``, if it is whole and from the same source."""
    try:
        fields = read_json(output / SOURCE_NAME)
        fields["files"] = tuple(FileOrigin(**file) for file in fields["files"])
        report = DownloadReport(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        # There is none, or one of another version of this code: the source is fetched.
        return None
    is_whole = has_size(output / ROWS_NAME, report.size_bytes)
    return report if is_whole and report.identity_sha256 == _hash_identity(source) else None


def _hash_identity(source: RowSource) -> str:
    return hashlib.sha256(source.identity.encode()).hexdigest()


@contextmanager
def _alone_in(output: Path, source: RowSource) -> Iterator[None]:
    """Keep other processes out of ``output``, which is made if missing, after waiting for one that is in it.

    Raises:
        ConfigError: if ``output`` lies in the source.
    """
    if isinstance(source, LocalSource):
        source.refuse_output(output)
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("another process downloads to %s; waiting for it", output)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _download_folder(output: Path) -> Iterator[Path]:
    """Yield the folder for files in between, and remove it; after an error, what was fetched stays in it."""
    folder = output / DOWNLOAD_FOLDER
    folder.mkdir(exist_ok=True)
    keep_parts(folder)
    try:
        yield folder
    except BaseException:
        keep_parts(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    shutil.rmtree(folder)


def open_source(uri: str, workspace: Workspace | None) -> RowSource:
    """Return the source that ``uri`` names; nothing is fetched yet.

    Raises:
        ConfigError, MissingPathError, WorkspaceError: as :func:`download_dataset`.
    """
    match = SCHEME.match(uri)
    if match is None:
        if not uri.strip():
            raise ConfigError(f"the dataset URI is empty; allowed are {ALLOWED_SCHEMES}.")
        return open_local(uri, uri, None)
    scheme = (match.group(1) or match.group(2)).lower()
    if scheme in ("http", "https", "s3"):
        _refuse_credentials(uri)
    if scheme in ("http", "https"):
        check_url(uri)
        return WebSource(url=uri)
    if scheme == "s3":
        return _s3_source(uri)
    if scheme == "hf":
        # Imported here, because datasets takes seconds to import and most sources need none of it.
        from osft.data.download.hub import HubSource

        return HubSource.parse(uri)
    if scheme == "pvc":
        return open_local(uri, uri[match.end() :], workspace or Workspace.from_environment())
    raise ConfigError(f"a dataset URI may not start with {scheme}:; allowed are {ALLOWED_SCHEMES}.")


def _refuse_credentials(uri: str) -> None:
    """Refuse a URI that carries user and password, without repeating them."""
    try:
        authority = urlsplit(uri).netloc
    except ValueError as error:
        raise ConfigError(f"the dataset URI cannot be read ({error}). Give scheme://host/path.") from error
    if "@" in authority:
        raise ConfigError("the dataset URI carries credentials before '@'. Give them through the environment instead.")


def _s3_source(uri: str) -> RowSource:
    try:
        # An extra of the package: a user without S3 need not install it.
        from osft.data.download.s3 import S3Source
    except ImportError as error:
        raise DownloadError(
            f"{uri}: S3 needs the package s3fs. Install it with pip install 'osft-continual-learning[remote]'."
        ) from error
    return S3Source.parse(uri)
