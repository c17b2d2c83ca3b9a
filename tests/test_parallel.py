import os
import signal
from collections.abc import Iterator

import pytest

from osft.errors import DataError
from osft.parallel import count_processes, map_in_order


def square_slowly_at_first(number: int) -> int:
    # Earlier items take longer, so that later ones would overtake them.
    return sum(number for _ in range(number * (100_000 if number < 3 else 1))) // (100_000 if number < 3 else 1)


def refuse_three(number: int) -> int:
    if number == 3:
        raise DataError("line 3 is wrong. Mend it.")
    return number


def die_elsewhere(home: int) -> int:
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return home


def process_of(_: int) -> int:
    return os.getpid()


def threads_of(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("RAYON_NUM_THREADS")


def test_results_come_in_the_order_of_the_items() -> None:
    results = list(map_in_order(square_slowly_at_first, range(20), processes=2))

    assert results == [number**2 for number in range(20)]


def test_items_are_read_only_a_few_ahead_of_the_results() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, 101):  # noqa: UP028 it counts what was taken
            yield taken

    results = map_in_order(abs, items(), processes=2)
    next(results)

    assert taken <= 33
    results.close()


def test_one_item_or_one_process_is_worked_on_here() -> None:
    assert list(map_in_order(process_of, [1], processes=2)) == [os.getpid()]
    assert set(map_in_order(process_of, range(3), processes=1)) == {os.getpid()}
    assert set(map_in_order(process_of, range(3), processes=2)) - {os.getpid()}


def test_a_worker_has_one_thread_of_the_tokenizer() -> None:
    threads = dict(map_in_order(threads_of, range(4), processes=2))

    assert {threads[process] for process in threads if process != os.getpid()} == {"1"}


def test_an_error_of_the_work_arrives_as_it_is() -> None:
    results = map_in_order(refuse_three, range(10), processes=2)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"line 3 is wrong"):
        next(results)


def test_a_killed_worker_is_an_error_that_speaks_of_memory() -> None:
    with pytest.raises(DataError, match=r"a worker process was killed.*Give the step more memory"):
        list(map_in_order(die_elsewhere, [os.getpid()] * 4, processes=2))


def test_there_are_no_more_processes_than_cpus() -> None:
    assert 1 <= count_processes() <= min(os.cpu_count() or 1, 16)
