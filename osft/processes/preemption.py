"""Being asked to stop: a pod that is preempted gets SIGTERM, and SIGKILL some seconds later (30 by default).

Before the first step there is nothing to save, and getting there may take longer than that: the process stops where it
is. From then on the handler only sets a flag. The loop looks at it after each step, so that what is saved is the state
between two steps, and every process can stop after the same one.

Python runs a handler when the main thread is back from the call that it is in: a signal that comes inside a long
collective is seen after it.
"""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from osft.errors import PreemptedError

logger = logging.getLogger(__name__)

# 128 + SIGTERM, what a shell and a container report for a process that SIGTERM ended: a Job's podFailurePolicy and
# Kubeflow's restart policy "ExitCode" take it for a reason to try again.
PREEMPTED_EXIT_CODE = 128 + signal.SIGTERM


class StopNow(BaseException):
    """SIGTERM came before the first step. Not an Exception: nothing on the way may take it for a failed call."""

    def as_error(self) -> PreemptedError:
        """Return what a caller sees of it."""
        return PreemptedError(
            "stopped by SIGTERM before the first step; the same call goes on from the last checkpoint, or starts over "
            "if there is none."
        )


class Preemption:
    """What SIGTERM does for the length of a block: it ends it, or, after :meth:`defer`, is noted.

    Only the main thread of a process may set handlers: in another one the block notices nothing.
    """

    def __init__(self, *, is_launched: bool) -> None:
        """Prepare the block.

        Args:
            is_launched: whether this is one of the processes of a run. Such a one gets a signal from what started it,
                and often a second one from what signals every process there is; so only the first one counts, and
                whoever waits in vain kills it. One that nobody launched is ended by a second signal.
        """
        self.requested = False
        """Whether the process was asked to stop."""
        self._is_launched = is_launched
        self._is_deferred = False
        self._earlier: Any = None
        self._installed = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            logger.debug("SIGTERM is left as it is: this is not the main thread")
            return self
        self._earlier = signal.signal(signal.SIGTERM, self._note)
        self._installed = True
        return self

    def defer(self) -> None:
        """From now on only note the signal: who looks at :attr:`requested` stops when all is saved."""
        self._is_deferred = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed:
            self._installed = False
            # A handler that was not set from Python is unknown to it.
            earlier = signal.SIG_DFL if self._earlier is None else self._earlier
            # The process is about to end, and says why as its last act.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.requested and self._is_launched else earlier)
        if isinstance(error, StopNow):
            raise error.as_error() from None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self._is_launched:
            return
        if self.requested:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self.requested = True
        if not self._is_deferred:
            raise StopNow
