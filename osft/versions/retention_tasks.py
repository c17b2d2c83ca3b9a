"""The rows that earlier versions' runs held out, kept as permanent tasks for the runs after them.

A version carries its held-out rows, and what it scored on every task, document by document. In its own run the rows
are the target task ``holdout``; from then on they are the retention task ``holdout_<version>``, in the files of its
folder as well.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from osft.data.files import HOLDOUT_NAME
from osft.evaluation.config import HOLDOUT_TASK
from osft.evaluation.measurement import TaskMeasurement, measurement_path
from osft.versions.folders import HOLDOUT_FOLDER, relative_path, versions_folder
from osft.versions.lineage import Lineage
from osft.workspace import Workspace


def task_name(version: str) -> str:
    """Return the name under which later runs are asked the rows that the run of ``version`` held out."""
    return f"{HOLDOUT_TASK}_{version}"


def permanent_name(task: str, version: str) -> str:
    """Return the name of a task of the run of ``version`` for all later runs."""
    return task_name(version) if task == HOLDOUT_TASK else task


def has_holdout(processed: Path) -> bool:
    """Return whether a run held out any rows.

    Args:
        processed: folder of its tokenized rows.
    """
    file = processed / HOLDOUT_NAME
    return file.is_file() and pq.read_metadata(file).num_rows > 0


def keep_holdout(processed: Path, version: Path) -> None:
    """Copy the held-out rows of a run into the folder of its version, if there are any."""
    if has_holdout(processed):
        target = version / HOLDOUT_FOLDER
        target.mkdir(exist_ok=True)
        shutil.copyfile(processed / HOLDOUT_NAME, target / HOLDOUT_NAME)


def keep_measurements(measured: Path, target: Path, *, version: str) -> None:
    """Copy measurements, each under the permanent name of its task; those that are there already stay.

    Args:
        measured: folder with a file for each task; may be missing.
        target: folder to write.
        version: the version whose run measured.
    """
    for file in sorted(measured.glob("*.parquet")):
        measurement = TaskMeasurement.load(file)
        name = permanent_name(measurement.task, version)
        if not (kept := measurement_path(target, name)).exists():
            replace(measurement, task=name).save(kept)


def earlier_holdouts(workspace: Workspace, chain: Sequence[Lineage]) -> dict[str, str]:
    """Return the permanent tasks of a chain.

    Args:
        workspace: where the models are.
        chain: the ancestors, oldest first.

    Returns:
        Name of each task, and the folder of its rows relative to the workspace.
    """
    return {
        lineage.learned_task: relative_path(
            workspace, versions_folder(workspace, lineage.model_name) / lineage.version / HOLDOUT_FOLDER
        )
        for lineage in chain
        if lineage.learned_task
    }
