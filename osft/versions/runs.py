"""The runs of a workspace, and which of them are still under way.

The volume does not say whether a run's pods live. A run is taken as under way until it is known that it has nothing new
to learn, or until its evaluation is there, and after it until its model is promoted or can no longer be; unless nothing
was written in its folder for two weeks: then it failed, and is given up.

The runs of a sweep's ratios are judged as one with the sweep's own: it chooses among all of them at its end, also among
those that did not pass, and while they train nothing is written in its own folder.

Other processes write and remove while this is read: a run that vanishes meanwhile is none.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osft.data.files import VALIDATION_REPORT_NAME
from osft.errors import WorkspaceError
from osft.versions.base_model import BASE_NAME, BASE_STEP, BaseModel
from osft.versions.journal import Journal
from osft.versions.removal import walk
from osft.versions.run_record import SCORES_NAME
from osft.workspace import MANIFEST_NAME, Workspace, read_json, safe_name, write_json

RUNS_FOLDER = "runs"
SWEEP_NAME = "sweep.json"
"""In the folder of a ratio's run: the id of its sweep's."""

ABANDONED_AFTER_SECONDS = 14 * 24 * 3600
"""A training writes every step and an evaluation after every task; longer than this only a queue is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that has pinned what it starts from."""

    workspace: Workspace
    folder: Path
    base: BaseModel

    group: tuple[Path, ...]
    """Folder of its sweep's run, which may be gone, then those of the sweep's ratios; of any other run only its own."""

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
        if _is_abandoned(self.group, now):
            return False
        # A ratio's run starts from what its sweep's does, and is needed until the sweep's model is promoted.
        judged = self.group[0]
        validation = _read(judged / "valid" / VALIDATION_REPORT_NAME)
        # The step of a run whose rows are refused leaves no folder: this one has ended early, and well.
        if validation and validation["rows_valid"] == 0:
            return False
        if not (judged / "evaluation" / MANIFEST_NAME).is_file():
            return judged.exists()
        scores = _read(judged / "evaluation" / SCORES_NAME)
        journal = Journal(self.workspace, self.base.model_name)
        can_win = scores is not None and scores["passed"] and journal.current() == self.base.current
        return can_win and journal.promotion_of(judged.name) is None


def join_sweep(workspace: Workspace, run_id: str, sweep_id: str) -> None:
    """Note in the folder of a ratio's run, which need not exist yet, to which sweep it belongs.

    Args:
        workspace: where the runs are.
        run_id: id of the ratio's run.
        sweep_id: id of the sweep's.

    Raises:
        WorkspaceError: if ``run_id`` cannot be a folder name.
    """
    write_json(workspace.run_directory(run_id) / SWEEP_NAME, {"run_id": sweep_id})


def runs_of(workspace: Workspace) -> list[Run]:
    """Return every run that has pinned what it starts from, the last written first."""
    runs = [
        Run(workspace=workspace, folder=folder, base=base, group=group)
        for folder, group in _groups(_folders(workspace)).items()
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
        for folder, group in _groups(_folders(workspace)).items()
        if _is_abandoned(group, now) and _has_steps(folder) and not (folder / BASE_STEP / BASE_NAME).exists()
    ]


def _folders(workspace: Workspace) -> list[Path]:
    runs = workspace.root / RUNS_FOLDER
    return sorted(path for path in runs.glob("[!.]*") if path.is_dir()) if runs.is_dir() else []


def _groups(folders: Sequence[Path]) -> Mapping[Path, tuple[Path, ...]]:
    """Return for each run's folder those that are judged as one with it: see :attr:`Run.group`."""
    judged = {folder: _judged(folder) for folder in folders}
    ratios = defaultdict(list)
    for folder, sweep in judged.items():
        if folder != sweep:
            ratios[sweep].append(folder)
    return {folder: (sweep, *ratios.get(sweep, ())) for folder, sweep in judged.items()}


def _judged(folder: Path) -> Path:
    """Return the folder of the sweep's run if ``folder`` is that of one of its ratios, otherwise ``folder``."""
    sweep = _read(folder / SWEEP_NAME)
    return folder.with_name(safe_name(sweep["run_id"], what="run id")) if sweep else folder


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
        (path.parent == folder and (path.suffix == ".partial" or path.name == SWEEP_NAME))
        or (path.parent.parent == folder and path.name == MANIFEST_NAME)
        for path, _ in walk(folder)
    )


def _is_abandoned(group: Sequence[Path], now: float) -> bool:
    return all(now - _last_written(folder) > ABANDONED_AFTER_SECONDS for folder in group)


def _last_written(folder: Path) -> float:
    written = {path: status.st_mtime for path, status in walk(folder)}
    # The folder's own time says only that a name has come or gone, as that of a linked step, which is old.
    own = written.pop(folder, 0.0)
    return max(written.values(), default=own)


def _read(path: Path) -> Any:
    """Return what a step has written; None if it has not, or the run was removed."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
