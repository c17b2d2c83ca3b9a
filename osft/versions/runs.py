"""The runs of a workspace, and which of them are still under way.

The volume does not say whether a run's pods live. A run is taken as under way until its evaluation is there, and after
it until its model is promoted or can no longer be, unless nothing was written in its folder for two weeks: then it
failed, or had nothing new to learn, and is given up.
"""

from dataclasses import dataclass
from pathlib import Path

from osft.errors import WorkspaceError
from osft.versions.base_model import BASE_NAME, BASE_STEP, BaseModel
from osft.versions.journal import Journal
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
        """When anything was last written in the run's folder, in seconds since 1970."""
        # Below these two levels it is files of a step whose own folder or metrics are as new.
        paths = (self.folder, *self.folder.glob("*"), *self.folder.glob("*/*"))
        return max(map(_modified, paths))

    def is_under_way(self, *, now: float) -> bool:
        """Return whether a step of the run may still need what it starts from, or its folder.

        Args:
            now: seconds since 1970.
        """
        if now - self.last_written > ABANDONED_AFTER_SECONDS:
            return False
        evaluation = self.folder / "evaluation"
        if not (evaluation / MANIFEST_NAME).is_file():
            return True
        journal = Journal(self.workspace, self.base.model_name)
        can_win = read_json(evaluation / SCORES_NAME)["passed"] and journal.current() == self.base.current
        return can_win and journal.promotion_of(self.run_id) is None


def runs_of(workspace: Workspace) -> list[Run]:
    """Return every run that has pinned what it starts from, the last written first."""
    runs = [
        Run(workspace=workspace, folder=path.parent.parent, base=base)
        for path in (workspace.root / RUNS_FOLDER).glob(f"[!.]*/{BASE_STEP}/{BASE_NAME}")
        if (base := _base_of(path))
    ]
    return sorted(runs, key=lambda run: run.last_written, reverse=True)


def _base_of(path: Path) -> BaseModel | None:
    """Return what a run starts from; None if another process has removed the run since it was listed."""
    try:
        return BaseModel.load(path)
    except WorkspaceError:
        if path.exists():
            raise
        return None


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        # A step that is under way renames and removes files while the folder is listed.
        return 0.0
