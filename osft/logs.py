"""One way to log, set up once by each entry point: the command line, a pipeline step, a training process."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: int = logging.INFO) -> None:
    """Send this library's log lines of ``level`` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt="%H:%M:%S"))
    logger = logging.getLogger("osft")
    logger.handlers = [handler]
    logger.setLevel(level)
    # The root logger may be set up by others; a line must not appear twice.
    logger.propagate = False


def ensure_logging(level: int = logging.INFO) -> None:
    """Set logging up unless the caller has: a call from a notebook shows its progress too."""
    if not logging.getLogger("osft").handlers and not logging.getLogger().handlers:
        configure_logging(level)


@contextmanager
def logged_above_bar(terminal: TextIO) -> Iterator[None]:
    """Send the log lines for ``terminal`` through the standard error that rich put in its place: it moves the bar."""
    handlers = [
        handler
        for handler in logging.getLogger("osft").handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(terminal)
