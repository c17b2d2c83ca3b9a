"""Interruptions of real processes: SIGTERM, another number of processes, a disk that is full."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from osft import osft
from osft.errors import PreemptedError
from osft.training.metrics import read_metrics
from tests.checkpoints.interruption import sigterm_after_first_step
from tests.conftest import join_run, run_together

Call = Callable[..., dict[str, Any]]
PREEMPTED = 143
# Long enough not to end before the signal comes.
EPOCHS = 50


def start(parameters: dict[str, Any], **options: Any) -> subprocess.Popen[str]:
    """Start ``osft train`` with the parameters of ``osft()``."""
    arguments = [sys.executable, "-m", "osft.cli", "train"]
    for name, value in parameters.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, str(value)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, **options)


def stop_after_first_step(parameters: dict[str, Any], **options: Any) -> str:
    """Send SIGTERM to a run that tells of its first step; return what it says afterwards."""
    with start(parameters, **options) as process:
        assert process.stderr is not None
        before = []
        for line in process.stderr:
            before.append(line)
            if " step 1 of " in line:
                process.send_signal(signal.SIGTERM)
                break
        after = process.stderr.read()
        assert process.wait(timeout=120) == PREEMPTED, "".join(before) + after
    return after


def weights(result: Any) -> dict[str, torch.Tensor]:
    return load_file(result.final_checkpoint / "model.safetensors")


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_143_and_the_same_call_goes_on(call: Call) -> None:
    parameters = call("stopped", num_epochs=EPOCHS)

    said = stop_after_first_step(parameters)

    assert f"of {2 * EPOCHS}; the same call goes on from there." in said.splitlines()[-1]
    result, whole = osft(**parameters, resume="must"), osft(**call("whole", num_epochs=EPOCHS))
    files = [run.final_checkpoint / "model.safetensors" for run in (result, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def train(rank: int, port: int, world_size: int, parameters: dict[str, Any], stop: bool) -> None:
    """Run in a process of its own: train with the others, to the end or until the SIGTERM that all of them get."""
    join_run(rank, world_size, port)
    with sigterm_after_first_step() if stop else nullcontext(), suppress(PreemptedError):
        osft(**parameters)


def train_together(world_size: int, parameters: dict[str, Any], *, stop: bool = False) -> int:
    """Train in several processes; return how many steps the run has taken."""
    run_together(train, world_size, world_size, {**parameters, "nproc_per_node": world_size}, stop)
    return len(read_metrics(Path(parameters["ckpt_output_dir"]) / "metrics.jsonl"))


@pytest.mark.slow
def test_two_processes_that_were_interrupted_end_bit_for_bit_as_two_that_were_not(call: Call, tmp_path: Path) -> None:
    steps = [
        train_together(2, call("whole")),
        train_together(2, call("interrupted"), stop=True),
        train_together(2, call("interrupted", resume="must")),
    ]

    assert steps == [8, steps[1], 8]
    assert steps[1] < 8
    whole, resumed = (tmp_path / run / "final" / "model.safetensors" for run in ("whole", "interrupted"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(call: Call, tmp_path: Path) -> None:
    train_together(1, call("whole", num_epochs=10))

    steps = [
        train_together(world_size, call("stopped", num_epochs=10, resume=resume), stop=stop)
        for world_size, resume, stop in ((1, "auto", True), (3, "must", True), (2, "must", False))
    ]

    assert steps[0] < steps[1] < steps[2] == 20
    whole, result = (
        [step.loss for step in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("whole", "stopped")
    )
    # Sums in another order: roundings of float32, amplified by twenty steps.
    assert result == pytest.approx(whole, rel=1e-5)


def _no_room() -> None:
    # Writing past it is an error, as on a full disk. Metrics and processed data are smaller, checkpoints are larger.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


@pytest.mark.slow
def test_a_full_disk_does_not_end_a_training_that_can_go_on(call: Call, tmp_path: Path) -> None:
    parameters = call("full", checkpoint_every_steps=2, save_final_checkpoint=False)
    command = f"from osft import osft; print(osft(**{parameters!r}).steps)"

    finished = subprocess.run(
        [sys.executable, "-c", command], preexec_fn=_no_room, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "8"
    lines = [line for line in finished.stderr.splitlines() if "ERROR" in line]
    assert len(lines) == 4
    assert all("the checkpoint cannot be saved (process 0: [Errno 27] File too large" in line for line in lines)
    assert all("the training goes on" in line and "Make room there" in line for line in lines)


@pytest.mark.slow
def test_a_stop_that_cannot_be_saved_says_so_and_keeps_what_was_saved_before(call: Call, tmp_path: Path) -> None:
    parameters = call("full", num_epochs=EPOCHS)
    stop_after_first_step(parameters)
    kept = sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())
    first = int(kept[-1].removeprefix("step_"))

    with start(parameters, preexec_fn=_no_room) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f" step {first + 1} of " in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read().splitlines()[-1]

    assert process.wait() == PREEMPTED
    assert "this state could not be saved (process 0: [Errno 27] File too large" in said
    assert f"so the same call goes on after step {first}." in said
    assert sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir()) == kept
