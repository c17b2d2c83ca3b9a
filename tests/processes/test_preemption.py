"""A process that is asked to stop."""

import os
import signal
import subprocess
import sys
import threading

from osft.processes.preemption import PREEMPTED_EXIT_CODE, Preemption

ASKED_TWICE = """
import os, signal
from osft.processes.preemption import Preemption
with Preemption() as preemption:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        print(preemption.requested, flush=True)
"""


def test_sigterm_is_noted_and_the_earlier_handler_comes_back() -> None:
    earlier = signal.getsignal(signal.SIGTERM)

    with Preemption() as preemption:
        before = preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)

    assert (before, preemption.requested) == (False, True)
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    process = subprocess.run([sys.executable, "-c", ASKED_TWICE], stdout=subprocess.PIPE, text=True, check=False)

    assert process.stdout == "True\n"
    assert process.returncode == -signal.SIGTERM


def test_another_thread_than_the_main_one_leaves_the_signal_as_it_is() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [(earlier, False)]


def test_the_exit_code_is_the_one_of_a_process_that_sigterm_ended() -> None:
    assert PREEMPTED_EXIT_CODE == 143
