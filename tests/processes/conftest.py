"""Runs in processes of their own, as a user or a pod starts them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import pytest

# What a busy machine needs to start two processes that import transformers.
START_SECONDS = 180


def options(parameters: Mapping[str, object]) -> list[str]:
    """Return the parameters of ``osft()`` as options of ``osft train``."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in parameters.items() if value is not True] + [
        f"--{name.replace('_', '-')}" for name, value in parameters.items() if value is True
    ]


@pytest.fixture
def osft_train() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``osft train`` with parameters and variables of the environment; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(parameters: Mapping[str, object], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "osft.cli", "train", *options(parameters)]
        started.append(subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if psutil.pid_exists(process.pid):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for an event outside of this process."""

    def wait(done: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            assert time.monotonic() < deadline, "the event did not come in time"
            time.sleep(0.05)

    return wait


@pytest.fixture
def workers_of() -> Callable[[subprocess.Popen[str]], dict[int, psutil.Process]]:
    """Return the processes of a run that train, by global rank."""

    def find(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "osft.training.worker" in child.cmdline()]
        return {int(worker.environ()["RANK"]): worker for worker in workers}

    return find
