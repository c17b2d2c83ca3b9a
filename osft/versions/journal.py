"""Which version of a model is current: a journal that only grows, with compare-and-swap.

    models/<model_name>/history/000001.json   one entry a change; the highest number says what is current
    models/<model_name>/latest                the current version's name, for people and tools

An entry is written whole under a temporary name and then linked to its number. A link is made by one process only,
also by two pods on NFS, where file locks cannot be relied on; who finds the number taken reads what took it and
compares again. ``latest`` is a copy that may lag behind for a moment; nothing in this library reads it.
"""

import errno
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import orjson

from osft.content_cache import NO_LINKS
from osft.errors import WorkspaceError
from osft.versions.folders import versions_folder
from osft.workspace import Workspace, atomic_file, read_json, sync_directory

logger = logging.getLogger(__name__)

HISTORY_FOLDER = "history"
LATEST_NAME = "latest"
ENTRY_NAME = re.compile(r"(\d{6,})\.json")

Reason = Literal["promotion", "rollback"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One change of the current version."""

    number: int
    """From 1, without gaps."""

    version: str
    """Current from this entry on."""

    replaced: str | None
    """Current until this entry; None for the first."""

    reason: Reason
    run_id: str | None
    """Run that promoted; None for a rollback."""

    at: str
    """ISO 8601, UTC."""


class LostRaceError(WorkspaceError):
    """Another version became current than the one that was expected to be."""

    def __init__(self, message: str, *, entry: Entry | None) -> None:
        """Keep the entry that won; ``None`` if there is none yet."""
        super().__init__(message)
        self.entry = entry


def promoted_models(workspace: Workspace) -> list[str]:
    """Return the names of the models of which something was promoted."""
    return sorted(path.parent.name for path in workspace.models.glob(f"*/{HISTORY_FOLDER}"))


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of one model's versions; the folder need not exist."""

    workspace: Workspace
    model_name: str

    def __post_init__(self) -> None:
        versions_folder(self.workspace, self.model_name)

    def current(self) -> str | None:
        """Return the current version; None if none was ever promoted."""
        last = self.last()
        return last.version if last else None

    def last(self) -> Entry | None:
        """Return the newest entry.

        Raises:
            WorkspaceError: if it cannot be read, or an older osft promoted versions without one.
        """
        number = self._highest()
        if number == 0:
            self._check_no_older_versions()
        return self._read(number) if number else None

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first.

        Raises:
            WorkspaceError: if one is missing or cannot be read.
        """
        return [self._read(number) for number in range(1, self._highest() + 1)]

    def promotion_of(self, run_id: str) -> Entry | None:
        """Return the entry by which a run promoted its version."""
        return next((entry for entry in self.entries() if entry.reason == "promotion" and entry.run_id == run_id), None)

    def check(self, expected: str | None) -> None:
        """Find out early whether ``expected`` is still current.

        Raises:
            LostRaceError: if it is not.
        """
        self._compare(expected, self.last())

    def replace(self, expected: str | None, version: str, *, reason: Reason, run_id: str | None) -> Entry:
        """Make ``version`` the current one if ``expected`` still is.

        The same change asked for twice is made once: a call whose predecessor was killed after it had written its
        entry returns that entry.

        Args:
            expected: what must be current; None: nothing was promoted yet.
            version: what becomes current.
            reason: why.
            run_id: run that promotes; None for a rollback.

        Raises:
            LostRaceError: if another version is current.
            WorkspaceError: if the file system has no hard links, or the journal cannot be read.
        """
        last = self.last()
        wanted = (version, expected, reason, run_id)
        while last is None or (last.version, last.replaced, last.reason, last.run_id) != wanted:
            self._compare(expected, last)
            last = self._append(
                Entry(
                    number=last.number + 1 if last else 1,
                    version=version,
                    replaced=expected,
                    reason=reason,
                    run_id=run_id,
                    at=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
        self.name_latest()
        return last

    def name_latest(self) -> None:
        """Bring ``latest`` up to date; a change that another process makes meanwhile is looked for again."""
        latest, written = self._folder / LATEST_NAME, None
        while (current := self.current()) != written:
            with atomic_file(latest, "w") as file:
                file.write(f"{current}\n")
            written = current

    @property
    def _folder(self) -> Path:
        return versions_folder(self.workspace, self.model_name)

    def _path(self, number: int) -> Path:
        return self._folder / HISTORY_FOLDER / f"{number:06d}.json"

    def _highest(self) -> int:
        history = self._folder / HISTORY_FOLDER
        names = [path.name for path in history.iterdir()] if history.is_dir() else []
        number = max((int(match[1]) for name in names if (match := ENTRY_NAME.fullmatch(name))), default=0)
        # A network file system may list a folder as it was a moment ago.
        while self._path(number + 1).exists():
            number += 1
        return number

    def _read(self, number: int) -> Entry:
        path = self._path(number)
        try:
            return Entry(**read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise WorkspaceError(f"{path}: no entry of a journal ({error}). Restore the file from a backup.") from error

    def _append(self, entry: Entry) -> Entry:
        """Write ``entry`` under its number, and return what has that number now: another process may be faster."""
        path = self._path(entry.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(orjson.dumps(entry, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; a pod under another user id of the same group must read them.
            Path(temporary).chmod(0o664)
            path.hardlink_to(temporary)
        except OSError as error:
            if error.errno in NO_LINKS:
                raise WorkspaceError(
                    f"{path.parent}: the file system has no hard links, by which a version becomes current. "
                    "Put the workspace on one that has, as NFS, CephFS and local ones do."
                ) from error
            # Also where the link was made and its answer got lost, so that the second try met the first.
            if error.errno != errno.EEXIST:
                raise
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_directory(path.parent)
        return self._read(entry.number)

    def _check_no_older_versions(self) -> None:
        """Refuse a model that was promoted before there were journals; now ``latest`` is written after an entry."""
        if (self._folder / LATEST_NAME).exists():
            name = self.model_name
            raise WorkspaceError(
                f"models/{name} names a current version in '{LATEST_NAME}' and has no journal: an older osft promoted "
                f"it. Move models/{name} away, or promote under another name. To go on from such a version, give its "
                "path as model_base or model_origin."
            )

    def _compare(self, expected: str | None, last: Entry | None) -> None:
        if (last.version if last else None) == expected:
            return
        is_now = "none is"
        if last:
            by = f"the promotion of run '{last.run_id}'" if last.reason == "promotion" else "a rollback"
            is_now = f"{last.version} is, by {by} at {last.at}"
        # KFP's Retry goes on with the same run, which keeps what it began with and would lose again.
        raise LostRaceError(
            f"models/{self.model_name}: {expected or 'no version'} was to be the current version still, but {is_now}. "
            "Start a new run (not a retry of this one).",
            entry=last,
        )
