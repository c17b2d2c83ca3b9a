"""Steps of a local run that need not import all anew: each is a fork of a process that has.

KFP's runner starts a step with ``sys.executable``. In its place stands a script that hands its arguments, environment
and output to the process here, and ends as the fork does. Most of a step's time on a small model is imports.
"""

import importlib
import json
import os
import runpy
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FORKSERVER

CLIENT = Path(__file__).with_name("forked_step.py")
IMPORTED = ("kfp.dsl.executor_main", "osft.data.processing.process", "osft.evaluation.evaluate")


def serve(server: socket.socket) -> None:
    """Import what steps need, then run each that is asked for in a fork, one after the other."""
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("r") as lines:
            _, outputs, _, _ = socket.recv_fds(connection, 1, maxfds=2)
            step = json.loads(lines.readline())
            process = os.fork()
            if process == 0:
                run_step(step, outputs)
            for descriptor in outputs:
                os.close(descriptor)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            connection.sendall(f"{code}\n".encode())


def run_step(step: dict[str, Any], outputs: list[int]) -> None:
    """Do what ``python -m MODULE ARGUMENT...`` would do, and end this process."""
    code = 1
    try:
        for descriptor, output in enumerate(outputs, start=1):
            os.dup2(output, descriptor)
        os.chdir(step["folder"])
        os.environ.clear()
        os.environ.update(step["environment"])
        _, module, *sys.argv[1:] = step["arguments"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if error := sys.exception():
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stdout.flush()
        os._exit(code)


@pytest.fixture(scope="session")
def step_address() -> Iterator[str]:
    """Where the process listens that steps are forked from."""
    # Not below pytest's folder: the address of a socket is at most 107 characters long.
    with tempfile.TemporaryDirectory(prefix="steps-") as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")
        server.listen()
        process = FORKSERVER.Process(target=serve, args=(server,), daemon=True)
        process.start()
        yield f"{folder}/socket"
        process.terminate()
        process.join()


@pytest.fixture(scope="module")
def forked_steps(step_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let local runs fork their steps, in this module."""
    interpreter = tmp_path_factory.mktemp("interpreter") / "python"
    interpreter.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE {shlex.quote(str(CLIENT))} {step_address} "$@"\n'
    )
    interpreter.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(interpreter))
        yield
