"""A process that hangs or fails is known to the others, by name and within seconds."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import torch.distributed as dist

from osft.errors import DataError, PreemptedError
from osft.processes.group import Processes, process_group
from osft.processes.preemption import Preemption
from osft.processes.watch import HangWatch
from osft.subspace.decomposition import ProtectedSubspace, protect_leading_directions
from osft.subspace.exchange import spread
from osft.subspace.targets import Target
from tests.conftest import FORKSERVER, join_run

pytestmark = pytest.mark.slow

# Long for steps that take no time, short for a test.
LIMIT_MINUTES = 0.05
# The limit, the two looks, the seconds that a main thread has to end itself, and a busy machine.
DEADLINE_SECONDS = 60
# Of two processes each decomposes six.
WEIGHTS = 12


def run_worker(
    work: Callable[[Processes, HangWatch], None], global_rank: int, world_size: int, port: int, folder: Path
) -> None:
    """Run in a process of its own: join the run and work; what it raises goes where torchelastic would look for it."""
    join_run(global_rank, world_size, port)
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(folder / f"{global_rank}.json")
    from torch.distributed.elastic.multiprocessing.errors import record

    def join() -> None:
        with (
            process_group() as processes,
            Preemption(is_launched=True),
            HangWatch(processes, LIMIT_MINUTES) as watch,
        ):
            work(processes, watch)

    record(join)()


@pytest.fixture
def start(tmp_path: Path, free_port: int) -> Iterator[Callable[..., list[BaseProcess]]]:
    """Start ``work`` in several processes; they are ended with the test."""
    started: list[BaseProcess] = []

    def begin(work: Callable[[Processes, HangWatch], None], world_size: int = 2) -> list[BaseProcess]:
        for global_rank in range(world_size):
            arguments = (work, global_rank, world_size, free_port, tmp_path)
            started.append(FORKSERVER.Process(target=run_worker, args=arguments))
            started[-1].start()
        return started

    yield begin
    for process in started:
        process.kill()
        process.join()


def message_of(folder: Path, global_rank: int) -> str:
    return orjson.loads((folder / f"{global_rank}.json").read_bytes())["message"]["message"]


def take_steps(watch: HangWatch, before: Callable[[int], None]) -> None:
    for step in range(1, 6):
        watch.entered(f"step {step}")
        before(step)
        dist.all_reduce(torch.ones(1))


def stop_the_second(processes: Processes, watch: HangWatch) -> None:
    def stop(step: int) -> None:
        if step == 3 and processes.global_rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    take_steps(watch, stop)


def test_a_stopped_process_is_named_with_its_step(start: Callable[..., list[BaseProcess]], tmp_path: Path) -> None:
    first, _, third = start(stop_the_second, 3)

    first.join(DEADLINE_SECONDS)
    third.join(DEADLINE_SECONDS)

    assert (first.exitcode, third.exitcode) == (1, 1)
    expected = "TrainingError: rank 1 has stopped answering in step 3; rank 0, 2 waited for it in step 3."
    assert message_of(tmp_path, 0).startswith(expected)
    assert message_of(tmp_path, 2).startswith(expected)


def stop_the_first(processes: Processes, watch: HangWatch) -> None:
    def stop(step: int) -> None:
        if step == 3 and processes.global_rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    take_steps(watch, stop)


def test_where_the_process_that_holds_the_store_stops_the_others_say_so(
    start: Callable[..., list[BaseProcess]], tmp_path: Path
) -> None:
    _, second = start(stop_the_first)

    second.join(DEADLINE_SECONDS)

    assert second.exitcode == 1
    assert "rank 1 has been in step 3" in message_of(tmp_path, 1)
    assert "the node of rank 0 does not answer" in message_of(tmp_path, 1)


def wait_for_nothing(processes: Processes, watch: HangWatch) -> None:
    def wait(step: int) -> None:
        if step == 3 and processes.global_rank == 1:
            threading.Event().wait()

    take_steps(watch, wait)


def test_a_main_thread_that_hangs_outside_a_collective_is_named_with_its_line(
    start: Callable[..., list[BaseProcess]], tmp_path: Path
) -> None:
    processes = start(wait_for_nothing)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    assert [process.exitcode for process in processes] == [1, 1]
    for global_rank in range(2):
        message = message_of(tmp_path, global_rank)
        assert message.startswith("TrainingError: rank 1 has been in step 3 for 0.1 min, at ")
        assert "threading.py:" in message
        assert "; rank 0 waited for it in step 3" in message


def fail_in_the_second(processes: Processes, watch: HangWatch) -> None:
    def fail(step: int) -> None:
        if step == 2 and processes.global_rank == 1:
            raise DataError("row 3: bad")

    take_steps(watch, fail)


def test_the_error_of_one_process_is_the_error_of_all(start: Callable[..., list[BaseProcess]], tmp_path: Path) -> None:
    processes = start(fail_in_the_second)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    assert [process.exitcode for process in processes] == [1, 1]
    assert [message_of(tmp_path, global_rank) for global_rank in range(2)] == ["DataError: row 3: bad"] * 2


def break_in_the_second(processes: Processes, watch: HangWatch) -> None:
    def fail(step: int) -> None:
        if step == 2 and processes.global_rank == 1:
            raise KeyError("weight")

    take_steps(watch, fail)


def test_an_error_that_nobody_foresaw_is_told_to_the_others_with_process_and_step(
    start: Callable[..., list[BaseProcess]], tmp_path: Path
) -> None:
    processes = start(break_in_the_second)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    assert message_of(tmp_path, 0) == "TrainingError: rank 1, in step 2: KeyError: 'weight'."
    assert message_of(tmp_path, 1) == "KeyError: 'weight'"


def stop_after_step_two(processes: Processes, watch: HangWatch) -> None:
    def leave(step: int) -> None:
        if step == 3:
            raise PreemptedError(f"rank {processes.global_rank} stopped after step 2")

    take_steps(watch, leave)


def test_a_preempted_process_ends_by_itself(start: Callable[..., list[BaseProcess]], tmp_path: Path) -> None:
    processes = start(stop_after_step_two)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    for global_rank in range(2):
        assert message_of(tmp_path, global_rank) == f"PreemptedError: rank {global_rank} stopped after step 2"


def ask_the_second_to_stop(processes: Processes, watch: HangWatch) -> None:
    def ask(step: int) -> None:
        if step == 2 and processes.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    take_steps(watch, ask)


def test_a_process_that_is_stopped_before_the_first_step_stops_the_others(
    start: Callable[..., list[BaseProcess]], tmp_path: Path
) -> None:
    processes = start(ask_the_second_to_stop)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    for global_rank in range(2):
        assert message_of(tmp_path, global_rank).startswith("PreemptedError: stopped by SIGTERM before the first step")


def decompose_slowly(processes: Processes, watch: HangWatch) -> None:
    model: Any = torch.nn.ModuleDict({f"layer_{number}": torch.nn.Linear(4, 4) for number in range(WEIGHTS)})
    targets = [Target(module_name=name, parameter_name="weight", inputs_are_columns=True) for name in model]

    def protect(name: str, weight: torch.Tensor) -> ProtectedSubspace:
        # All together longer than a phase with a clock may be.
        time.sleep(LIMIT_MINUTES * 60 / 2)
        return protect_leading_directions(weight, 0.5)

    exchanged = spread(protect, model, targets, watch.entered)
    for target in targets:
        assert exchanged(target.name, torch.empty(4, 4)).left.shape == (4, 2)


def test_the_clock_starts_anew_with_each_weight_that_is_decomposed(start: Callable[..., list[BaseProcess]]) -> None:
    processes = start(decompose_slowly)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    assert [process.exitcode for process in processes] == [0, 0]


def share_what_the_first_made(processes: Processes, watch: HangWatch) -> None:
    folder = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent

    def make() -> str:
        # Longer than a phase with a clock may be.
        time.sleep(LIMIT_MINUTES * 60 + 2)
        return f"made by {processes.global_rank}"

    made = watch.first_does(make, "making")
    (folder / f"{processes.global_rank}.txt").write_text(made)
    dist.barrier()
    watch.first_does(fail_to_make, "making more")


def fail_to_make() -> str:
    raise DataError("no rows")


def test_what_the_first_process_makes_or_fails_to_make_is_the_same_for_all(
    start: Callable[..., list[BaseProcess]], tmp_path: Path
) -> None:
    processes = start(share_what_the_first_made)

    for process in processes:
        process.join(DEADLINE_SECONDS)

    assert [(tmp_path / f"{global_rank}.txt").read_text() for global_rank in range(2)] == ["made by 0"] * 2
    assert [message_of(tmp_path, global_rank) for global_rank in range(2)] == ["DataError: no rows"] * 2


def test_a_process_that_nobody_launched_has_no_one_to_watch() -> None:
    alone = Processes(global_rank=0, local_rank=0, world_size=1)

    with HangWatch(alone, limit_minutes=1e-9) as watch:
        watch.entered("step 1")
        made = watch.first_does(lambda: "made", "making")

    assert made == "made"
    assert "osft-watch" not in {thread.name for thread in threading.enumerate()}
