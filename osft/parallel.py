"""Work on the pieces of a file in several processes, with the results in order and few of them in memory.

Threads would share the interpreter's lock, and a fork copies the threads of libraries without their locks. loky's
workers are fresh processes that do not run the caller's script again, so a script or a notebook needs no guard. They
take a second to start; the calling process works too, so that it is not waited away.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any, TypeVar

import loky
from loky.process_executor import TerminatedWorkerError

from osft.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Beyond this, the process that collects the results is the slower side.
MAX_PROCESSES = 16
# While this process is busy with an item of its own, the workers must not run dry.
ITEMS_PER_WORKER = 3
# A slow item must not let the results behind it pile up.
MAX_RESULTS_PER_WORKER = 32
# One thread in each process: together they fill the machine.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _Work:
    """In a worker, what it was started for: sent once, since it may hold a tokenizer."""

    function: Callable[[Any], Any]


def count_processes() -> int:
    """Return how many processes may work at once: the CPUs that the container leaves, 16 at most."""
    return min(loky.cpu_count(), MAX_PROCESSES)


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, processes: int | None = None
) -> Iterator[Result]:
    """Yield ``work(item)`` for each of ``items``, in their order.

    Args:
        work: a function that can be pickled; it goes to each worker once.
        items: read as the work goes on, a few ahead.
        processes: how many work, this one included; :func:`count_processes` if not given. With one, or with one item,
            no worker is started.

    Raises:
        DataError: if a worker is killed, which is what happens when memory runs out.
        Exception: what ``work`` raises, as it is; items behind it are given up.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    processes = processes or count_processes()
    if processes == 1 or len(first) < 2:
        yield from map(work, chain(first, iterator))
        return
    workers = processes - 1
    with loky.ProcessPoolExecutor(workers, env=ONE_THREAD, initializer=_receive, initargs=(work,)) as pool:
        try:
            yield from _share(work, chain(first, iterator), pool, workers)
        except TerminatedWorkerError as error:
            raise DataError(
                "a worker process was killed, most likely because memory ran out. Give the step more memory."
            ) from error


def _share(
    work: Callable[[Item], Result], items: Iterator[Item], pool: loky.ProcessPoolExecutor, workers: int
) -> Iterator[Result]:
    """Yield the results in order; while the next one is not ready, an item is worked on here."""
    results: deque[Future[Result]] = deque()
    try:
        while True:
            missing = workers * ITEMS_PER_WORKER - sum(not result.done() for result in results)
            results.extend(pool.submit(_do, item) for item in islice(items, max(0, missing)))
            if not results:
                return
            must_wait = len(results) >= workers * MAX_RESULTS_PER_WORKER
            own = [] if must_wait or results[0].done() else list(islice(items, 1))
            if own:
                results.append(_work_here(work, own[0]))
            else:
                yield results.popleft().result()
    finally:
        for result in results:
            result.cancel()


def _work_here(work: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Return ``work(item)``, or what it raises, as a worker would: an error waits until its turn comes."""
    future: Future[Result] = Future()
    try:
        future.set_result(work(item))
    except Exception as error:  # noqa: BLE001 raised by result()
        future.set_exception(error)
    return future


def _receive(work: Callable[[Any], Any]) -> None:
    _Work.function = work
    # What was imported stays for good: the collector need not look at it again and again.
    gc.freeze()


def _do(item: Any) -> Any:
    return _Work.function(item)
