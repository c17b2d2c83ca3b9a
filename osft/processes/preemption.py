"""Being asked to stop: a pod that is preempted gets SIGTERM, and SIGKILL some seconds later (30 by default).

The handler only sets a flag. The loop looks at it after each step, so that what is saved is the state between two
steps, and every process can stop after the same one. Python runs a handler when the main thread is back from the call
that it is in: a signal that comes inside a long collective is seen after it.
"""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

# 128 + SIGTERM, what a shell and a container report for a process that SIGTERM ended: a Job's podFailurePolicy and
# Kubeflow's restart policy "ExitCode" take it for a reason to try again.
PREEMPTED_EXIT_CODE = 128 + signal.SIGTERM


class Preemption:
    """Notes SIGTERM for the length of a block; a second one ends the process at once.

    Only the main thread of a process may set handlers: in another one the block notices nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether the process was asked to stop."""
        self._earlier: Any = None
        self._installed = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            logger.debug("SIGTERM is left as it is: this is not the main thread")
            return self
        self._earlier = signal.signal(signal.SIGTERM, self._note)
        self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed:
            self._installed = False
            # A handler that was not set from Python is unknown to it.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._earlier is None else self._earlier)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.requested = True
