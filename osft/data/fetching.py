"""What every kind of source has in common: how its state is described, and when a failed fetch is tried again."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fsspec.callbacks import Callback
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from osft.data.formats import RowSink
from osft.data.progress import RowProgress

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ATTEMPTS = 5
# Doubles with each attempt: 0.5, 1, 2 and 4 seconds.
FIRST_WAIT_SECONDS = 0.5
TOO_MANY_REQUESTS, FIRST_SERVER_ERROR = 429, 500


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOrigin:
    """One file, or one dataset of a hub, as the source described it."""

    name: str
    size_bytes: int | None = None
    revision: str | None = None
    etag: str | None = None
    last_modified: str | None = None


class RowSource(Protocol):
    """A place that rows come from."""

    @property
    def uri(self) -> str:
        """The dataset's URI as the user gave it, without credentials."""

    def copy_rows(self, sink: RowSink, scratch: Path) -> tuple[FileOrigin, ...]:
        """Append every row to ``sink``, using the folder ``scratch`` for files in between."""


class ByteProgress(Callback):
    """Logs how far fsspec is with one file."""

    def __init__(self, activity: str) -> None:
        """Start at zero."""
        super().__init__()
        self._progress = RowProgress(logger, activity)

    def relative_update(self, inc: int = 1) -> None:
        """Add ``inc`` bytes."""
        super().relative_update(inc)
        self._progress.advance(0, inc)


def with_retries(work: Callable[[], Result], is_transient: Callable[[BaseException], bool], uri: str) -> Result:
    """Return what ``work`` returns, calling it again after a transient error, :data:`ATTEMPTS` times at most.

    Args:
        work: starts afresh with each call.
        is_transient: whether asking again may mend an error.
        uri: for the log, without credentials.

    Raises:
        BaseException: the last error of ``work``, as it is.
    """

    def log_attempt(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        # The name only: the message may quote a link with its secret.
        logger.warning("%s: attempt %d failed (%s); trying again", uri, state.attempt_number, type(error).__name__)

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_WAIT_SECONDS),
        retry=retry_if_exception(is_transient),
        before_sleep=log_attempt,
        reraise=True,
    )
    return retrying(work)


def is_transient_status(status: int) -> bool:
    """Return whether an HTTP status may be another one next time."""
    return status == TOO_MANY_REQUESTS or status >= FIRST_SERVER_ERROR
