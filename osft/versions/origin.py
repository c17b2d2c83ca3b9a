"""What the origin of a chain scored, kept in the folder of the chain's first version.

The chain shows it as the pseudo-version ``v0000``, which has a lineage and measurements and no weights: the first
column of the accuracy matrix, and what the forgetting of all later versions is measured against without loading the
origin again. A model may have several chains, one after the other or after a rollback, and each keeps its own.
"""

import shutil
from pathlib import Path

from osft.versions.base_model import BaseModel
from osft.versions.folders import MEASUREMENTS_FOLDER
from osft.versions.retention_tasks import keep_measurements
from osft.versions.run_record import MEASUREMENTS_OF_BASE, RunRecord


def keep_origin(record: RunRecord, base: BaseModel, *, version: str, folder: Path) -> None:
    """Write what a run without a parent measured of the origin.

    Args:
        record: the run.
        base: what it started from.
        version: name of its model.
        folder: folder to write, in place of what is there.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    measured = record.folder("evaluation") / MEASUREMENTS_OF_BASE
    keep_measurements(measured, folder / MEASUREMENTS_FOLDER, version=version)
    record.lineage_of_origin(version, base).save(folder)
