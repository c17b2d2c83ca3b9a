"""How far a pass over data is: a bar on a terminal, a line in the log now and then anywhere else.

One class for every step of the data: what is counted are rows and bytes, in calls that may come a million times a
second, so it looks at the clock and no further until it is time to show something. Used without ``with`` it only logs.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from osft.logs import logged_above_bar

# Often enough to see life, seldom enough to keep a day-long run's log readable.
INTERVAL_SECONDS = 5.0
# As often as a bar is drawn.
BAR_INTERVAL_SECONDS = 0.1
BYTES_PER_MB = 1_000_000


class RowProgress:
    """Counts rows and bytes, and shows both: ``with`` draws a bar if standard error is a terminal."""

    def __init__(self, logger: logging.Logger, activity: str, *, total_bytes: int | None = None) -> None:
        """Start at zero.

        Args:
            logger: where the lines go.
            activity: what is being done, in the past tense ("validated").
            total_bytes: how many there will be, if that is known.
        """
        self.rows = 0
        self.size_bytes = 0
        self._logger = logger
        self._activity = activity
        self._total_bytes = total_bytes
        self._interval_seconds = INTERVAL_SECONDS
        self._last_shown = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        """Draw a bar until the block ends, if standard error is a terminal."""
        # Not rich's own test, which takes any output for a terminal where colours are asked for.
        if sys.stderr.isatty():
            terminal = sys.stderr
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bar = self._resources.enter_context(Progress(*columns, console=Console(file=terminal)))
            self._resources.enter_context(logged_above_bar(terminal))
            self._task = self._bar.add_task(self._counts(), total=self._total_bytes)
            self._interval_seconds = BAR_INTERVAL_SECONDS
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Show the last counts and leave the terminal as it was."""
        if self._bar is not None:
            self._draw()
        self._bar, self._interval_seconds = None, INTERVAL_SECONDS
        self._resources.close()

    def advance(self, rows: int, size_bytes: int) -> None:
        """Add ``rows`` and ``size_bytes``, and show both if the last time is long past."""
        self.rows += rows
        self.size_bytes += size_bytes
        if time.monotonic() - self._last_shown < self._interval_seconds:
            return
        if self._bar is None:
            self.log()
        else:
            self._draw()

    def log(self) -> None:
        """Log the counts as they stand."""
        self._last_shown = time.monotonic()
        self._logger.info("%s", self._counts())

    @contextmanager
    def transfer(self, name: str) -> Iterator[Callable[[int, int | None], None]]:
        """Yield what takes how many bytes of the file ``name`` are there, and of how many if that is known.

        On a terminal they have a bar of their own below the rows, as long as the block lasts.
        """
        bar, last_shown = self._bar, time.monotonic()
        task = None if bar is None else bar.add_task(f"fetching {escape(name)}", total=None)

        def show(done_bytes: int, total_bytes: int | None) -> None:
            nonlocal last_shown
            if time.monotonic() - last_shown < self._interval_seconds:
                return
            last_shown = time.monotonic()
            if bar is not None and task is not None:
                bar.update(task, completed=done_bytes, total=total_bytes)
                return
            total = "" if total_bytes is None else f" of {total_bytes / BYTES_PER_MB:.1f}"
            self._logger.info("fetched %.1f%s MB of %s", done_bytes / BYTES_PER_MB, total, name)

        try:
            yield show
        finally:
            if bar is not None and task is not None:
                bar.remove_task(task)

    def _counts(self) -> str:
        return f"{self._activity} {self.rows} rows, {self.size_bytes / BYTES_PER_MB:.1f} MB"

    def _draw(self) -> None:
        self._last_shown = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.size_bytes, description=self._counts())
