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
from osft.data.download.links import BROKEN_LINK, check_url
from osft.data.download.local import LocalSource, open_local
from osft.data.download.placeholders import require_filled
from osft.data.download.row_sink import RowSink
from osft.data.download.web import WebSource
from osft.data.files import ROWS_NAME, SOURCE_NAME
from osft.errors import ConfigError, DataError, DownloadError
from osft.workspace import Workspace, atomic_file, has_size, read_json, sync_directory, write_json

logger = logging.getLogger(__name__)

# Names that no user has given to a file: what they stand for is removed.
DOWNLOAD_FOLDER, LOCK_NAME = ".osft-download", ".osft-download.lock"
# A pod under another user id of the same group goes on here.
FOLDER_MODE, LOCK_MODE = 0o775, 0o664
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

    modified_ns: int
    """When ``rows.jsonl`` was written: who edits it later is found out without reading it again."""

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
    a call that failed has fetched lies in ``output/.osft-download``, for the next one to go on with.

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
    with _alone_in(output, open_source(uri, workspace)):
        # Files may have come or gone while this process waited.
        return _download_if_changed(open_source(uri, workspace), output)


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
        report = _download_if_changed(open_source(uri, workspace), output)
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
        only = origins[0] if len(origins) == 1 else FileOrigin(name="")
        report = DownloadReport(
            uri=source.uri,
            identity_sha256=_hash_identity(source),
            rows=sink.progress.rows,
            size_bytes=sink.progress.size_bytes,
            sha256=sink.sha256,
            modified_ns=(folder / ROWS_NAME).stat().st_mtime_ns,
            revision=only.revision,
            etag=only.etag,
            last_modified=only.last_modified,
            files=origins,
        )
        stored = asdict(report)
        del stored["unchanged"]
        write_json(folder / SOURCE_NAME, stored)
        # Both are whole. Should this process end here, no report speaks of other rows than those beside it.
        (output / SOURCE_NAME).unlink(missing_ok=True)
        for name in (ROWS_NAME, SOURCE_NAME):
            (folder / name).replace(output / name)
        sync_directory(output)
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
    rows = output / ROWS_NAME
    is_whole = has_size(rows, report.size_bytes) and rows.stat().st_mtime_ns == report.modified_ns
    return report if is_whole and report.identity_sha256 == _hash_identity(source) else None


def _hash_identity(source: RowSource) -> str:
    return hashlib.sha256(source.identity.encode(errors="surrogateescape")).hexdigest()


@contextmanager
def _alone_in(output: Path, source: RowSource) -> Iterator[None]:
    """Keep other processes out of ``output``, which is made if missing, after waiting for one that is in it.

    Raises:
        ConfigError: if ``output`` lies in the source, or cannot be written to.
    """
    if isinstance(source, LocalSource):
        source.refuse_output(output)
    lock = FileLock(output / LOCK_NAME, mode=LOCK_MODE)
    with _writing_to(output):
        _make_folder(output)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("another process downloads to %s; waiting for it", output)
            lock.acquire()
    try:
        _refuse_folders(output)
        yield
    finally:
        lock.release()


@contextmanager
def _download_folder(output: Path) -> Iterator[Path]:
    """Yield the folder for files in between, and remove it; after an error, what was fetched stays in it."""
    folder = output / DOWNLOAD_FOLDER
    if folder.is_symlink():
        raise ConfigError(f"'{folder}' is a link, and what it leads to would be removed. Remove the link.")
    with _writing_to(output):
        _make_folder(folder)
        keep_parts(folder)
    try:
        yield folder
    except BaseException:
        keep_parts(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    shutil.rmtree(folder)


@contextmanager
def _writing_to(output: Path) -> Iterator[None]:
    """Tell in one line why ``output`` cannot be written to.

    Raises:
        ConfigError: if it is a file, may not be written to, or is on a disk that is full.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"output '{output}' cannot be written to ({error.filename}: {error.strerror}). Mend it or choose another "
            "folder."
        ) from error


def _refuse_folders(output: Path) -> None:
    for path in (output / ROWS_NAME, output / SOURCE_NAME):
        if path.is_dir():
            raise ConfigError(f"'{path}' is a folder, but a file of that name is to be written. Choose another output.")


def _make_folder(path: Path) -> None:
    """Make a folder that the group may write to, and those above it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        folder.chmod(FOLDER_MODE)


def open_source(uri: str, workspace: Workspace | None) -> RowSource:
    """Return the source that ``uri`` names; nothing is fetched yet.

    Raises:
        ConfigError, MissingPathError, WorkspaceError: as :func:`download_dataset`.
    """
    uri = uri.strip()
    if BROKEN_LINK.match(uri):
        raise ConfigError(
            "the dataset URI looks like a link but is none (it is not repeated: it may hold a secret). "
            "Give https://host/path, without quotes."
        )
    require_filled(uri)
    match = SCHEME.match(uri)
    if match is None:
        if not uri:
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
    except ValueError:
        # Not chained: it may quote the credentials.
        raise ConfigError("the dataset URI cannot be read. Give scheme://host/path.") from None
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
