"""The runs of a workspace, and which of them are still under way.

The volume does not say whether a run's pods live. A run is taken as under way until it is known that it has nothing new
to learn, or until its evaluation is there, and after it until its model is promoted or can no longer be; unless nothing
was written in its folder for two weeks: then it failed, and is given up.

Other processes write and remove while this is read: a run that vanishes meanwhile is none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osft.data.files import VALIDATION_REPORT_NAME
from osft.errors import WorkspaceError
from osft.versions.base_model import BASE_NAME, BASE_STEP, BaseModel
from osft.versions.journal import Journal
from osft.versions.removal import walk
from osft.versions.run_record import SCORES_NAME
from osft.workspace import MANIFEST_NAME, Workspace, read_json

RUNS_FOLDER = "runs"
ABANDONED_AFTER_SECONDS = 14 * 24 * 3600
"""A training writes every step and an evaluation after every task; longer than this only a queue is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that has pinned what it starts from."""

    workspace: Workspace
    folder: Path
    base: BaseModel

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.folder.name

    @property
    def last_written(self) -> float:
        """When anything was last written in the run's folder, in seconds since 1970; 0 if it is gone."""
        return _last_written(self.folder)

    def is_under_way(self, *, now: float) -> bool:
        """Return whether a step of the run may still need what it starts from, or its folder.

        Args:
            now: seconds since 1970.
        """
        if _is_abandoned(self.folder, now):
            return False
        validation = _read(self.folder / "valid" / VALIDATION_REPORT_NAME)
        # The step of a run whose rows are refused leaves no folder: this one has ended early, and well.
        if validation and validation["rows_valid"] == 0:
            return False
        if not (self.folder / "evaluation" / MANIFEST_NAME).is_file():
            return self.folder.exists()
        scores = _read(self.folder / "evaluation" / SCORES_NAME)
        journal = Journal(self.workspace, self.base.model_name)
        can_win = scores is not None and scores["passed"] and journal.current() == self.base.current
        return can_win and journal.promotion_of(self.run_id) is None


def runs_of(workspace: Workspace) -> list[Run]:
    """Return every run that has pinned what it starts from, the last written first."""
    runs = [
        Run(workspace=workspace, folder=folder, base=base)
        for folder in _folders(workspace)
        if (base := _base_of(folder / BASE_STEP / BASE_NAME))
    ]
    return sorted(runs, key=lambda run: run.last_written, reverse=True)


def stillborn_runs(workspace: Workspace, *, now: float) -> list[Path]:
    """Return the folders of runs that were given up before they had pinned what they start from.

    Args:
        workspace: where the runs are.
        now: seconds since 1970.
    """
    return [
        folder
        for folder in _folders(workspace)
        if _is_abandoned(folder, now) and _has_steps(folder) and not (folder / BASE_STEP / BASE_NAME).exists()
    ]


def _folders(workspace: Workspace) -> list[Path]:
    runs = workspace.root / RUNS_FOLDER
    return sorted(path for path in runs.glob("[!.]*") if path.is_dir()) if runs.is_dir() else []


def _base_of(path: Path) -> BaseModel | None:
    """Return what a run starts from; None if it has not pinned it, or was removed since it was listed."""
    try:
        return BaseModel.load(path) if path.is_file() else None
    except WorkspaceError:
        if path.exists():
            raise
        return None


def _has_steps(folder: Path) -> bool:
    """Return whether a folder is a run's, and not something that a person keeps beside them."""
    return any(
        (path.parent == folder and path.suffix == ".partial")
        or (path.parent.parent == folder and path.name == MANIFEST_NAME)
        for path, _ in walk(folder)
    )


def _is_abandoned(folder: Path, now: float) -> bool:
    return now - _last_written(folder) > ABANDONED_AFTER_SECONDS


def _last_written(folder: Path) -> float:
    return max((status.st_mtime for _, status in walk(folder)), default=0.0)


def _read(path: Path) -> Any:
    """Return what a step has written; None if it has not, or the run was removed."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
