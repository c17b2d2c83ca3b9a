"""What the processes of a run tell each other outside their collectives: where each one is, and that one has failed.

A collective that one process does not enter says nothing: the others wait in it until its timeout. So each process
has a thread that posts to the store of the run what its main thread is in, and since when. The first one whose main
thread has been in one phase for too long looks where everybody is, says who keeps the others waiting, and posts that
as the run's failure. A process that raises an error posts that. Whoever reads a failure ends with its message, and
what started the processes ends those that cannot read any more.

The store is torchrun's, in a process of its own, so it answers also when the first process of the run does not.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import orjson
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from osft.errors import OsftError, PreemptedError, TrainingError, one_line
from osft.processes.group import Processes
from osft.processes.order import as_failure, failure_error
from osft.processes.places import SECONDS_PER_MINUTE, Place, describe_hang, in_minutes, line_of_main_thread
from osft.processes.preemption import StopNow

logger = logging.getLogger(__name__)

# How soon the failure of one process is known to the others.
BEAT_SECONDS = 1.0
# Between two looks at where everybody is, a thread that can run has posted.
BEATS_BETWEEN_LOOKS = 4
# How soon a main thread that waits for the others goes on.
POLL_SECONDS = 0.1
# The store is a dictionary; it answers at once, or its host hangs.
STORE_SECONDS = 10.0
# A main thread that is not in a collective ends by the same failure itself, and then a caller can catch it.
GRACE_SECONDS = 5.0
# How long a process whose collective broke waits to hear what broke it.
NEWS_SECONDS = 3.0
FAILURE_KEY = "failure"
LEFT_KEY = "left"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Phase:
    """What the main thread does now."""

    order: int
    name: str
    start: float
    """By time.monotonic()."""

    timed: bool
    """Whether it must end in time."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class HangWatch:
    """Watches the processes of a run for the length of a block. Every process must enter and leave it.

    A process that nobody launched has no one to watch: then all of it does nothing.
    """

    def __init__(self, processes: Processes, limit_minutes: float) -> None:
        """Prepare the watch.

        Args:
            processes: the run's.
            limit_minutes: how long the main thread may be in one phase.
        """
        limit_seconds = limit_minutes * SECONDS_PER_MINUTE
        self._observer = None if processes.store is None else _Observer(processes, processes.store, limit_seconds)

    def __enter__(self) -> "HangWatch":
        if self._observer is not None:
            self._observer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._observer is not None:
            self._observer.leave(error)

    def entered(self, phase: str) -> None:
        """Say that the main thread now begins ``phase``, such as "step 17"; the clock starts anew.

        Every process calls this for the same phases in the same order: who has entered fewer keeps the others waiting.
        """
        if self._observer is not None:
            self._observer.enter(phase, timed=True)

    def first_does(self, work: Callable[[], str], what: str) -> str:
        """Let the first process do ``work``, which may take any time, and return in every process what it returned.

        Args:
            work: called in the first process alone.
            what: names the work; each must have a name of its own.

        Raises:
            OsftError: what ``work`` raises, in every process.
        """
        return work() if self._observer is None else self._observer.first_does(work, what)


class _Observer:
    """The threads of a process that belongs to a run, and what its main thread shares with them.

    One talks to the store, which may take for ever when the store's host hangs; the other one ends the process.
    """

    def __init__(self, processes: Processes, store: dist.Store, limit_seconds: float) -> None:
        self._processes = processes
        self._store = store
        self._limit_seconds = limit_seconds
        # Always assigned as a whole, so no thread sees half of it.
        self._phase = _Phase(order=0, name="the start", start=time.monotonic(), timed=False)
        self._beat = 0
        self._heard = time.monotonic()
        self._failure: OsftError | None = None
        self._failed = threading.Event()
        self._leaving = False
        self._left = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"osft-watch-{work.__name__}", daemon=True)
            for work in (self._talk, self._guard)
        ]

    # What follows runs in the main thread.

    def start(self) -> None:
        self._post_place(self._store)
        for thread in self._threads:
            thread.start()

    def enter(self, name: str, *, timed: bool) -> None:
        self._phase = _Phase(order=self._phase.order + 1, name=name, start=time.monotonic(), timed=timed)
        try:
            self._post_place(self._store)
        except dist.DistError as error:
            # Nothing is lost while the work goes on.
            logger.debug("the store of the run does not answer: %s", one_line(error))

    def first_does(self, work: Callable[[], str], what: str) -> str:
        self.enter(what, timed=False)
        key = f"done/{what}"
        if self._processes.is_first:
            self._store.set(key, work())
        seen, since = b"", time.monotonic()
        while not self._store.check([key]):
            self._raise_failure(POLL_SECONDS)
            place = self._store.get(_place_key(0))
            if place != seen:
                seen, since = place, time.monotonic()
            elif time.monotonic() - since > self._limit_seconds:
                # The work may take any time, but whoever does it posts meanwhile.
                raise describe_hang([Place(**orjson.loads(seen))], self._places(self._store))
        return self._store.get(key).decode()

    def leave(self, error: BaseException | None) -> None:
        """End the watch, once every process is here or it is known how this one ends.

        Raises:
            OsftError: the failure of another process, if that is what ended this one.
        """
        try:
            if error is None:
                self._wait_for_all()
            elif not isinstance(error, PreemptedError):
                self._tell(error)
        except dist.DistError as store_error:
            # What the processes do next, a barrier, is an error of its own if they are not there.
            logger.warning("the store of the run does not answer: %s", one_line(store_error))
        finally:
            self._left.set()
            for thread in self._threads:
                thread.join(BEAT_SECONDS)

    def _wait_for_all(self) -> None:
        """Wait until every process is here: one that fails in its last phase ends the others too."""
        self._leaving = True
        self.enter("the end", timed=True)
        self._store.add(LEFT_KEY, 1)
        while self._store.add(LEFT_KEY, 0) < self._processes.world_size:
            self._raise_failure(POLL_SECONDS)

    def _tell(self, error: BaseException) -> None:
        """Post what ended this process, unless it was ended by what another one has posted."""
        if isinstance(error, StopNow):
            error = error.as_error()
        if not isinstance(error, OsftError):
            if isinstance(error, RuntimeError):
                # A broken collective is what is seen of another's failure, which that one posts at the same time.
                self._raise_failure(NEWS_SECONDS, cause=error)
            rank, kind = self._processes.global_rank, type(error).__name__
            error = TrainingError(f"rank {rank}, in {self._phase.name}: {kind}: {one_line(error)}.")
        self._post_failure(self._store, error)
        self._store.set(_heard_key(self._processes.global_rank), "")
        if self._processes.is_first:
            self._wait_until_heard()

    def _wait_until_heard(self) -> None:
        """Stay while the others read the failure: without torchrun's store, theirs would end with this process."""
        keys = [_heard_key(global_rank) for global_rank in range(self._processes.world_size)]
        deadline = time.monotonic() + NEWS_SECONDS
        while not self._store.check(keys) and time.monotonic() < deadline:
            self._left.wait(POLL_SECONDS)

    def _raise_failure(self, seconds: float, cause: BaseException | None = None) -> None:
        """Wait for a failure of the run, and raise it."""
        if self._failed.wait(seconds) and self._failure is not None:
            raise self._failure from cause

    # What follows runs in the thread that talks to the store, and some of it in the main one.

    def _talk(self) -> None:
        """Post where the main thread is, and take over the failure that a process has posted."""
        try:
            # A connection of its own: a call of the main thread may take its time.
            store = self._store.clone()  # type: ignore[attr-defined] # torch's stubs lack it
            while not self._left.wait(BEAT_SECONDS):
                self._post_beat(store)
                if store.check([FAILURE_KEY]):
                    self._failure = failure_error(orjson.loads(store.get(FAILURE_KEY)))
                    self._failed.set()
                    store.set(_heard_key(self._processes.global_rank), "")
                    return
                if self._is_late():
                    self._judge(store)
        except dist.DistError as error:
            logger.debug("the store of the run is gone: %s", one_line(error))

    def _post_beat(self, store: dist.Store) -> None:
        self._beat += 1
        self._post_place(store)
        self._heard = time.monotonic()

    def _post_place(self, store: dist.Store) -> None:
        line, in_collective = line_of_main_thread()
        phase = self._phase
        place = Place(
            global_rank=self._processes.global_rank,
            beat=self._beat,
            order=phase.order,
            phase=phase.name,
            seconds=phase.seconds,
            line=line,
            in_collective=in_collective or self._leaving,
        )
        store.set(_place_key(place.global_rank), orjson.dumps(place).decode())

    def _judge(self, store: dist.Store) -> None:
        """Post who keeps the others waiting, from two looks at where everybody is."""
        before = self._places(store)
        for _ in range(BEATS_BETWEEN_LOOKS):
            self._left.wait(BEAT_SECONDS)
            self._post_beat(store)
        if self._is_late():
            self._post_failure(store, describe_hang(before, self._places(store)))

    def _is_late(self) -> bool:
        phase = self._phase
        return phase.timed and phase.seconds > self._limit_seconds

    def _places(self, store: dist.Store) -> list[Place]:
        keys = [_place_key(global_rank) for global_rank in range(self._processes.world_size)]
        known = [key for key in keys if store.check([key])]
        return [Place(**orjson.loads(value)) for value in store.multi_get(known)]

    def _post_failure(self, store: dist.Store, error: OsftError) -> None:
        """Post ``error`` as what ended the run; the first one stays."""
        store.compare_set(FAILURE_KEY, "", orjson.dumps(as_failure(error)).decode())

    # What follows runs in the thread that ends the process: its main thread may hang, and no other thread can raise
    # an error in it.

    def _guard(self) -> None:
        parent = os.getppid()
        while not self._left.wait(BEAT_SECONDS):
            if os.getppid() != parent:
                self._end(TrainingError(f"rank {self._processes.global_rank}: what started this process is gone."))
            if self._failure is not None and not self._left.wait(GRACE_SECONDS):
                self._end(self._failure)
            silence = time.monotonic() - self._heard
            if silence > (STORE_SECONDS if self._is_late() else self._limit_seconds + STORE_SECONDS):
                self._judge_silence()

    def _judge_silence(self) -> None:
        """End the process if it makes no progress; the store, without which nobody can be asked, does not answer."""
        phase = self._phase
        if phase.seconds > self._limit_seconds:
            self._end(
                TrainingError(
                    f"rank {self._processes.global_rank} has been in {phase.name} for {in_minutes(phase.seconds)}, and "
                    "the node of rank 0 does not answer. Look at that node; the same call goes on from the last "
                    "checkpoint."
                )
            )

    def _end(self, error: OsftError) -> None:
        logger.error("rank %d ends: %s", self._processes.global_rank, error)
        get_error_handler().record_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _place_key(global_rank: int) -> str:
    return f"place/{global_rank}"


def _heard_key(global_rank: int) -> str:
    return f"heard/{global_rank}"
