"""A process that is asked to stop."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from osft import osft
from osft.errors import PreemptedError
from osft.logs import ensure_logging
from osft.processes.preemption import PREEMPTED_EXIT_CODE, Preemption
from tests.conftest import short_training

ASKED_TWICE = """
import os, signal, sys
from osft.processes.preemption import Preemption
with Preemption(is_launched=sys.argv[1] == "launched") as preemption:
    preemption.defer()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        print(preemption.requested, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


def ask_twice(kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ASKED_TWICE, kind]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def test_sigterm_is_noted_and_the_earlier_handler_comes_back() -> None:
    earlier = signal.getsignal(signal.SIGTERM)

    with Preemption(is_launched=False) as preemption:
        preemption.defer()
        before = preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)

    assert (before, preemption.requested) == (False, True)
    assert signal.getsignal(signal.SIGTERM) is earlier


@pytest.mark.parametrize("is_launched", [False, True])
def test_sigterm_before_the_steps_ends_the_block_through_whatever_catches_errors(is_launched: bool) -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    caught = []

    with (
        pytest.raises(PreemptedError, match="stopped by SIGTERM before the first step; the same call goes on from"),
        Preemption(is_launched=is_launched),
    ):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # noqa: BLE001 as libraries do
            caught.append(error)

    assert caught == []
    assert signal.signal(signal.SIGTERM, earlier) == (signal.SIG_IGN if is_launched else earlier)


def test_a_second_sigterm_ends_a_process_that_nobody_launched() -> None:
    process = ask_twice("alone")

    assert process.stdout == "True\n"
    assert process.returncode == -signal.SIGTERM


def test_a_launched_process_ignores_a_second_sigterm_to_its_end() -> None:
    process = ask_twice("launched")

    assert process.stdout == "True\nTrue\n"
    assert process.returncode == 0


def test_another_thread_than_the_main_one_leaves_the_signal_as_it_is() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with Preemption(is_launched=True) as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [(earlier, False)]


class _Terminator(logging.Handler):
    """Sends this process SIGTERM when its log tells that the model is ready."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("unfreeze_rank_ratio"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def sigterm_before_first_step() -> Iterator[None]:
    ensure_logging()
    logger, handler = logging.getLogger("osft.training.preparation"), _Terminator()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.usefixtures("sigterm_before_first_step")
def test_a_training_that_has_taken_no_step_stops_where_it_is(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PreemptedError, match="before the first step"):
        osft(**short_training(tiny_model, messages_file, tmp_path / "out", nproc_per_node=1))

    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_exit_code_is_the_one_of_a_process_that_sigterm_ended() -> None:
    assert PREEMPTED_EXIT_CODE == 143
