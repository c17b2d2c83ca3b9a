"""What the origin of a chain scored, kept as the pseudo-version ``v0000``.

It has a lineage and measurements and no weights: the first row of the accuracy matrix, and what the forgetting of all
later versions is measured against, without loading the origin again.
"""

from dataclasses import replace
from pathlib import Path

from osft.versions.base_model import BaseModel
from osft.versions.folders import MEASUREMENTS_FOLDER, ORIGIN_VERSION, versions_folder
from osft.versions.lineage import LINEAGE_NAME, Lineage
from osft.versions.removal import remove_folder
from osft.versions.retention_tasks import keep_measurements
from osft.versions.run_record import MEASUREMENTS_OF_BASE, RunRecord


def keep_origin(record: RunRecord, base: BaseModel, version: str) -> None:
    """Keep what a run without a parent measured of the origin; done again, it changes nothing.

    Runs from one origin add the tasks that are not known of it yet. One from another origin, which is what the current
    chain now begins with, takes the place.

    Args:
        record: the run.
        base: what it started from.
        version: name of its model.
    """
    folder = versions_folder(record.workspace, base.model_name) / ORIGIN_VERSION
    lineage = record.lineage_of_origin(version, base)
    if (folder / LINEAGE_NAME).is_file():
        known = Lineage.load(folder)
        if known.has_same_origin(lineage):
            names = {score.task for score in known.scores}
            new = tuple(score for score in lineage.scores if score.task not in names)
            lineage = replace(known, scores=(*known.scores, *new))
        else:
            remove_folder(folder)
    _write(folder, lineage, record.folder("evaluation") / MEASUREMENTS_OF_BASE, version)


def _write(folder: Path, lineage: Lineage, measured: Path, version: str) -> None:
    """Write measurements first: a lineage says that they are there."""
    folder.mkdir(exist_ok=True)
    keep_measurements(measured, folder / MEASUREMENTS_FOLDER, version=version)
    lineage.save(folder)
