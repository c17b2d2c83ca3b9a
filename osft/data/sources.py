"""A dataset's URI to rows in one JSON Lines file.

    pvc://relative/path             a file or folder inside the workspace
    /absolute/path, relative/path   a file or folder of this machine
    hf://name[:config][@revision]   the training split of a dataset on the Hugging Face Hub
    https://host/path               one file (http:// to this machine only)
    s3://bucket/key                 an object, or every object below a prefix

Files may be .jsonl, .json, .parquet or .csv, each also .gz or .zst; of a folder or prefix all such files are taken, in
the order of their names. Nothing is mended here: lines of JSON Lines files stay byte for byte, and validation judges
them. The file appears when it is whole.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from osft.data.fetching import FileOrigin, RowSource
from osft.data.formats import ALLOWED_SUFFIXES, RowSink, copy_rows, is_known
from osft.data.messages import ROWS_NAME
from osft.data.web import WebSource, check_url
from osft.errors import ConfigError, DataError, DownloadError, MissingPathError
from osft.workspace import Workspace, atomic_file, write_json

logger = logging.getLogger(__name__)

SOURCE_NAME = "source.json"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):", re.IGNORECASE)
ALLOWED_SCHEMES = "pvc://, hf://, https://, s3:// and plain paths"


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadReport:
    """Where the rows came from and what was written; saved as ``source.json``."""

    uri: str
    """Without credentials: the query of a web link is left out."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSource:
    """Files that this machine can read."""

    uri: str
    root: Path
    """The file, or the folder that the names of the files are relative to."""

    files: Sequence[Path]

    def refuse_output(self, output: Path) -> None:
        """Check that what is written to ``output`` neither replaces the source nor becomes a part of it.

        Raises:
            ConfigError: if it would.
        """
        root, written = self.root.resolve(), output.resolve() / ROWS_NAME
        if written == root or written.is_relative_to(root):
            raise ConfigError(f"output '{output}' lies in the source {self.uri}. Choose another folder.")

    def copy_rows(self, sink: RowSink, scratch: Path) -> tuple[FileOrigin, ...]:
        """Append the rows of every file.

        Raises:
            DataError: if a file is not what its suffix says.
        """
        origins = []
        for file in self.files:
            name = file.name if file == self.root else file.relative_to(self.root).as_posix()
            copy_rows(file, name, sink, scratch)
            origins.append(FileOrigin(name=name, size_bytes=file.stat().st_size))
        return tuple(origins)


def download_dataset(uri: str, output: Path, *, workspace: Workspace | None = None) -> DownloadReport:
    """Write the rows behind ``uri`` to ``output/rows.jsonl``, and where they came from to ``output/source.json``.

    Args:
        uri: the dataset; credentials come from the environment, never from here.
        output: folder for the two files; created if missing.
        workspace: where ``pvc://`` looks; the one of the environment if not given.

    Raises:
        ConfigError: if the URI has a form that is not allowed, or its file a suffix that is not known.
        MissingPathError: if a local path does not exist.
        WorkspaceError: if a ``pvc://`` path leaves the workspace.
        DownloadError: if a server does not give the data.
        DataError: if a file is damaged, or there are no rows.
    """
    source = open_source(uri, workspace)
    if isinstance(source, LocalSource):
        source.refuse_output(output)
    output.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=output, prefix=".download.") as scratch,
        atomic_file(output / ROWS_NAME) as file,
    ):
        sink = RowSink(file)
        origins = source.copy_rows(sink, Path(scratch))
        if sink.progress.rows == 0:
            raise DataError(f"{source.uri}: there are no rows in it. Give a dataset that has some.")
    only = origins[0] if len(origins) == 1 else FileOrigin(name="")
    report = DownloadReport(
        uri=source.uri,
        rows=sink.progress.rows,
        size_bytes=sink.progress.size_bytes,
        sha256=sink.sha256,
        revision=only.revision,
        etag=only.etag,
        last_modified=only.last_modified,
        files=origins,
    )
    write_json(output / SOURCE_NAME, asdict(report))
    sink.progress.log()
    return report


def open_source(uri: str, workspace: Workspace | None) -> RowSource:
    """Return the source that ``uri`` names; nothing is fetched yet.

    Raises:
        ConfigError, MissingPathError, WorkspaceError: as :func:`download_dataset`.
    """
    match = SCHEME.match(uri)
    if match is None:
        if not uri.strip():
            raise ConfigError(f"the dataset URI is empty; allowed are {ALLOWED_SCHEMES}.")
        return _local_source(uri, Path(uri), None)
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
        from osft.data.hub import HubSource

        return HubSource.parse(uri)
    if scheme == "pvc":
        workspace = workspace or Workspace.from_environment()
        return _local_source(uri, workspace.resolve(uri[match.end() :]), workspace)
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
    if not urlsplit(uri).netloc:
        raise ConfigError(f"'{uri}' names no bucket; give s3://bucket/key.")
    try:
        # An extra of the package: a user without S3 need not install it.
        from osft.data.s3 import S3Source
    except ImportError as error:
        raise DownloadError(
            f"{uri}: S3 needs the package s3fs. Install it with pip install 'osft-continual-learning[remote]'."
        ) from error
    return S3Source(uri=uri)


def _local_source(uri: str, root: Path, workspace: Workspace | None) -> LocalSource:
    """Return the file ``root``, or the files of a known suffix below it; links must not leave ``workspace``."""
    if not root.exists():
        raise MissingPathError(f"{uri}: there is no such file or folder. Check the spelling.")
    if root.is_file():
        return LocalSource(uri=uri, root=root, files=[root])
    paths = (path for path in root.rglob("*") if path.is_file() and is_known(path.name))
    files = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not files:
        raise DataError(f"{uri}: no file in the folder has a known suffix. Allowed are {ALLOWED_SUFFIXES}.")
    if workspace is not None:
        for file in files:
            workspace.resolve(file.relative_to(workspace.root.resolve()).as_posix())
    return LocalSource(uri=uri, root=root, files=files)
