"""A signal that comes when a run is under way."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from osft.logs import ensure_logging


class _Terminator(logging.Handler):
    """Sends this process SIGTERM when its log tells of a step; it tells of the first one of every call."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("step "):
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def sigterm_after_first_step() -> Iterator[None]:
    """A call of ``osft()`` in the block gets SIGTERM after its first step, and so stops after its second."""
    ensure_logging()
    logger, handler = logging.getLogger("osft.training.metrics"), _Terminator()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
