"""A log line now and then while rows stream past."""

import logging
import time

# Often enough to see life, seldom enough to keep a day-long run's log readable.
INTERVAL_SECONDS = 5.0
BYTES_PER_MB = 1_000_000


class RowProgress:
    """Counts rows and bytes, and logs both at most every :data:`INTERVAL_SECONDS`."""

    def __init__(self, logger: logging.Logger, activity: str) -> None:
        """Start at zero.

        Args:
            logger: where the lines go.
            activity: what is being done, in the past tense ("validated").
        """
        self.rows = 0
        self.size_bytes = 0
        self._logger = logger
        self._activity = activity
        self._last_line = time.monotonic()

    def advance(self, rows: int, size_bytes: int) -> None:
        """Add ``rows`` and ``size_bytes``, and log a line if the last one is long past."""
        self.rows += rows
        self.size_bytes += size_bytes
        if time.monotonic() - self._last_line >= INTERVAL_SECONDS:
            self.log()

    def log(self) -> None:
        """Log the counts as they stand."""
        self._last_line = time.monotonic()
        self._logger.info("%s %d rows, %.1f MB", self._activity, self.rows, self.size_bytes / BYTES_PER_MB)
