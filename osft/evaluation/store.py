"""Measurements that are kept from run to run, each under a hash of all that determines it.

A killed evaluation goes on at the first task that is not kept, and a known model is not evaluated again. Losing the
folder costs time and nothing else: so a file that cannot be read or written is a warning, and the task is measured.
Files appear whole, and two processes that write the same one write the same bytes of content.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from osft.errors import EvaluationError, one_line
from osft.evaluation.measurement import TaskMeasurement

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeasurementStore:
    """A folder of measurements by key."""

    root: Path | None
    """None keeps nothing."""

    def take(self, key: str) -> TaskMeasurement | None:
        """Return what is kept under ``key``; None if there is nothing, or nothing that can be read."""
        if self.root is None:
            return None
        path = self._path(self.root, key)
        try:
            return TaskMeasurement.load(path) if path.is_file() else None
        except (EvaluationError, OSError) as error:
            # Measuring again gives the same numbers; failing here would cost the evaluation.
            logger.warning("a kept measurement cannot be read, the task is measured again: %s", one_line(error))
            return None

    def keep(self, key: str, measurement: TaskMeasurement) -> None:
        """Keep ``measurement`` under ``key``; a later one replaces it."""
        if self.root is None:
            return
        try:
            measurement.save(self._path(self.root, key))
        except OSError as error:
            logger.warning(
                "task '%s': the measurement cannot be kept (%s); the next evaluation measures it again",
                measurement.task,
                one_line(error),
            )

    @staticmethod
    def _path(root: Path, key: str) -> Path:
        # Folders by the key's first byte: network file systems list one of many thousand files slowly.
        return root / key[:2] / f"{key}.parquet"
