"""Files of this machine as a source of rows: one file, a folder, or a pattern, on a plain path or in the workspace.

A pattern (``data/2026-*/**/train?.jsonl.gz``) has ``*``, ``?`` and ``[...]`` within a name, and ``**`` for any folders.
Of a folder or pattern the files of a known suffix are taken, hidden ones left out, in the order of their names.
Folders that cannot be read and links that lead nowhere are errors: leaving them out would lose rows in silence.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import NoReturn

from osft.data.download.fetching import FileOrigin
from osft.data.download.formats import copy_rows
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import ALLOWED_SUFFIXES, is_known
from osft.data.files import ROWS_NAME, SOURCE_NAME
from osft.errors import ConfigError, DataError, MissingPathError
from osft.workspace import Workspace, sha256_of_file

NANOSECONDS_PER_SECOND = 1_000_000_000
ANY_FOLDERS = "**"
EVERY_FILE = (ANY_FOLDERS, "*")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSource:
    """Files that this machine can read."""

    uri: str
    root: Path
    """The folder that the files' names are relative to."""

    pattern: tuple[str, ...] | None
    """What the parts of those names match; ``None`` for a single file."""

    files: tuple[Path, ...]

    workspace: Workspace | None = None
    """What no file may leave, links followed; ``None`` for a plain path."""

    @property
    def identity(self) -> str:
        """What tells this source from every other one, wherever it is asked for from."""
        wanted = self.pattern or tuple(file.name for file in self.files)
        return str(self.root.resolve().joinpath(*wanted))

    def is_unchanged(self, files: Sequence[FileOrigin]) -> bool:
        """Return whether the files are those of an earlier :meth:`copy_rows`, and nothing was written to them since."""
        return [(file.name, file.etag) for file in files] == [(file.name, file.etag) for file in self.origins()]

    def refuse_output(self, output: Path) -> None:
        """Check that what is written to ``output`` neither replaces the source nor becomes a part of it.

        Raises:
            ConfigError: if it would.
        """
        root, files = self.root.resolve(), {file.resolve() for file in self.files}
        written = [output.resolve() / name for name in (ROWS_NAME, SOURCE_NAME)]
        becomes_part = self.pattern is not None and any(
            path.is_relative_to(root) and matches_pattern(path.relative_to(root).parts, self.pattern)
            for path in written
        )
        if becomes_part or not files.isdisjoint(written):
            raise ConfigError(f"output '{output}' lies in the source {self.uri}. Choose another folder.")

    def origins(self) -> tuple[FileOrigin, ...]:
        """Describe the files without reading them: equal descriptions mean that nothing has been written to them.

        Raises:
            MissingPathError: if one was removed since.
        """
        return tuple(self._origin(file) for file in self.files)

    def copy_rows(self, sink: RowSink, folder: Path) -> tuple[FileOrigin, ...]:
        """Append the rows of every file.

        Raises:
            DataError: if a file is not what its suffix says, or is written to meanwhile.
            MissingPathError: if one was removed since.
            WorkspaceError: if a link was put in since that leaves the workspace.
        """
        return tuple(self._copy_file(file, sink, folder) for file in self.files)

    def _copy_file(self, file: Path, sink: RowSink, folder: Path) -> FileOrigin:
        origin, lines_before = self._origin(file), sink.lines
        # Again: the list may be hours old.
        _check_file(self.uri, file, self.workspace)
        with self._expecting(file):
            copy_rows(file, origin.name, sink, folder)
            sha256 = sha256_of_file(file)
        if self._origin(file) != origin:
            raise DataError(f"{origin.name}: the file changed while it was read. Try again when it is finished.")
        return replace(origin, sha256=sha256, first_line=lines_before + 1, lines=sink.lines - lines_before)

    def _origin(self, file: Path) -> FileOrigin:
        with self._expecting(file):
            state = file.stat()
        changed = datetime.fromtimestamp(state.st_mtime_ns // NANOSECONDS_PER_SECOND, tz=UTC)
        return FileOrigin(
            name=file.relative_to(self.root).as_posix(),
            size_bytes=state.st_size,
            # A copy that keeps the size and the time of writing is another file, or was changed later.
            etag=f"{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_ino}",
            last_modified=changed.isoformat(),
        )

    @contextmanager
    def _expecting(self, file: Path) -> Iterator[None]:
        """Say so if the file, which was there when it was listed, no longer is."""
        try:
            yield
        except FileNotFoundError as error:
            raise MissingPathError(f"{self.uri}: {file.name} was removed meanwhile. Try again.") from error


def open_local(uri: str, location: str, workspace: Workspace | None) -> LocalSource:
    """Return the files that ``location`` names; nothing is read yet.

    Args:
        uri: as the user gave it, for errors and the report.
        location: a path or a pattern; where something exists under that very name, it is a path.
        workspace: what ``location`` is relative to and must not leave, links followed; ``None`` for a plain path.

    Raises:
        MissingPathError: if nothing is there, or nothing matches.
        DataError: if no file has a known suffix, or one cannot be read or has a name that is not UTF-8.
        WorkspaceError: if the location, or a link among the files, leaves the workspace.
    """
    fixed, pattern = _split_pattern(location, workspace.root if workspace else Path())
    root = workspace.resolve(fixed) if workspace else Path(fixed)
    if not root.exists():
        raise MissingPathError(f"{uri}: there is no such file or folder. Check the spelling.")
    if root.is_file() and not pattern:
        _check_file(uri, root, workspace)
        return LocalSource(uri=uri, root=root.parent, pattern=None, files=(root,), workspace=workspace)
    files = _list_files(uri, root, pattern or EVERY_FILE)
    if pattern and not files:
        raise MissingPathError(f"{uri}: no file matches. Check the spelling; '**' stands for any folders.")
    known = tuple(file for file in files if is_known(file.name))
    if not known:
        raise DataError(
            f"{uri}: no file {'that matches' if pattern else 'in the folder'} has a known suffix. "
            f"Allowed are {ALLOWED_SUFFIXES}."
        )
    for file in known:
        _check_file(uri, file, workspace)
    return LocalSource(uri=uri, root=root, pattern=pattern or EVERY_FILE, files=known, workspace=workspace)


def _split_pattern(location: str, base: Path) -> tuple[str, tuple[str, ...]]:
    """Return the path before the first part with a wildcard, and the parts from there on; none for a path."""
    if not has_magic(location) or (base / location).exists():
        return location, ()
    parts = Path(location).parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    return str(Path(*parts[:fixed])), parts[fixed:]


def _list_files(uri: str, root: Path, pattern: Sequence[str]) -> list[Path]:
    """Return what matches below ``root`` and is no folder, in the order of names."""
    return sorted(root.joinpath(*parts) for parts in _walk(uri, root, pattern) if matches_pattern(parts, pattern))


def _walk(uri: str, root: Path, pattern: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the parts of every name that is not hidden, no deeper than ``pattern`` can match."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{uri}: {error.filename} cannot be read ({error.strerror}). Allow reading it.") from error

    at_any_depth = ANY_FOLDERS in pattern
    # A link may lead to a folder above it: without an end to the depth none is followed.
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=not at_any_depth):
        above = Path(folder).relative_to(root).parts
        yield from ((*above, name) for name in names if not name.startswith("."))
        deeper = at_any_depth or len(above) + 1 < len(pattern)
        folders[:] = [name for name in folders if deeper and not name.startswith(".")]


def matches_pattern(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a pattern, hidden ones never."""
    if not pattern:
        return not parts
    if pattern[0] == ANY_FOLDERS and matches_pattern(parts, pattern[1:]):
        return True
    if not parts or parts[0].startswith("."):
        return False
    if pattern[0] == ANY_FOLDERS:
        return matches_pattern(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and matches_pattern(parts[1:], pattern[1:])


def _check_file(uri: str, file: Path, workspace: Workspace | None) -> None:
    """Check that a listed name is a file, that it can be reported, and that no link takes it out of the workspace."""
    try:
        str(file.resolve()).encode()
        str(file).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(file)!a}: the name, or a folder's, is not UTF-8. Rename it.") from error
    if workspace is not None:
        workspace.resolve(file.relative_to(workspace.root.resolve()).as_posix())
    if not file.is_file():
        raise DataError(f"{uri}: {file.name} is no file but a broken link or a device. Remove it.")
