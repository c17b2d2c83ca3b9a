"""A second node for tests of several."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def run_in_background() -> Iterator[Callable[[dict[str, Any]], subprocess.Popen[bytes]]]:
    """Start ``osft(**parameters)`` in a process of its own; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(parameters: dict[str, Any]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", f"from osft import osft; osft(**{parameters!r})"]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
