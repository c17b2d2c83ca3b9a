"""A process that holds one prepared model and measures it once each time it is asked.

One process a variant, so that none meets another's memory, threads or patched classes. A process that waits costs no
time, so several take turns: the machine's speed drifts, and neighbours in time meet the same machine.
"""

import contextlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from osft.errors import TrainingError

Measurement = TypeVar("Measurement")


class DoesNotFitError(TrainingError):
    """The model and its training state are larger than the GPU's memory."""


class Worker(Generic[Measurement]):
    """A process of its own, for the length of a ``with`` block."""

    def __init__(self, name: str, prepare: Callable[[], Callable[[int], Measurement]]) -> None:
        """Say what the process does.

        Args:
            name: for error messages.
            prepare: makes what measures; both run in the process, so it must be picklable.
        """
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._connection, self._other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._other_end, prepare), daemon=True)

    def __enter__(self) -> Self:
        """Start the process and wait until it is prepared."""
        self._process.start()
        # The process has its own; with ours closed, its end is seen as the end of what it sends.
        self._other_end.close()
        try:
            self._receive()
        except TrainingError:
            # Only when it is gone is its memory on a GPU free for the next.
            self._process.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()
        self._connection.close()

    def measure(self, amount: int) -> Measurement:
        """Have the process measure once; ``amount`` is for what it prepared to understand.

        Raises:
            TrainingError: if the process ended.
            DoesNotFitError: if the GPU's memory is too small.
        """
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(amount)
        # Nothing is to be received from a process that has ended: that is the error to report.
        return self._receive()

    def _receive(self) -> Measurement:
        try:
            received: Measurement = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise TrainingError(f"the process of '{self._name}' ended. Its own error is printed above.") from error
        if isinstance(received, DoesNotFitError):
            raise received
        return received


def _serve(connection: Connection, prepare: Callable[[], Callable[[int], Measurement]]) -> None:
    """Prepare, say so, and answer every number with a measurement until there is none."""
    try:
        # The peers print what they do; standard output is for the tables.
        with contextlib.redirect_stdout(sys.stderr):
            measure = prepare()
            connection.send(None)
            while (amount := connection.recv()) is not None:
                connection.send(measure(amount))
    except torch.OutOfMemoryError as error:
        connection.send(DoesNotFitError(str(error)))
