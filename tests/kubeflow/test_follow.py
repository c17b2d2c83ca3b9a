"""What is known of a run from the workspace alone: its progress, and why its nodes failed."""

import logging
import os
from pathlib import Path

import pytest

from osft.errors import DataError, PreemptedError, TrainingError
from osft.kubeflow.failures import first_failure, forget_failure, forget_failures, leave_failure
from osft.kubeflow.follow import Progress


def write_steps(file: Path, *steps: int, rest: str = "") -> None:
    lines = "".join(f'{{"step": {step}, "total_steps": 9, "loss": 0.5}}\n' for step in steps)
    file.write_text(lines + rest)


def test_progress_is_the_last_whole_line_of_the_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "osft")
    file = tmp_path / "metrics.jsonl"
    progress = Progress(file)

    progress.show_new()
    write_steps(file, 1, 2, 3, rest='{"step": 4, "tot')
    progress.show_new()

    assert caplog.messages == ["step 3 of 9: loss 0.5000"]
    assert progress.read_step() == 3


@pytest.mark.parametrize("tail", [b"\0" * 40 + b"\n", b'{"step": 4, "to\n', b"4\n", b'{"step": 4}\n'])
def test_metrics_that_the_volume_shows_in_part_are_no_progress(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    write_steps(file, 1, 2, 3)
    with file.open("ab") as metrics:
        metrics.write(tail)

    progress = Progress(file)
    progress.show_new()

    assert progress.read_step() == 0


@pytest.mark.parametrize("text", ["", '{"kind": "DataEr', "\0\0", '{"kind": "Strange", "message": ""}'])
def test_a_failure_that_the_volume_shows_in_part_is_none_yet(tmp_path: Path, text: str) -> None:
    order_file = tmp_path / "order.json"
    leave_failure(order_file, 0, TrainingError("no memory"))
    (tmp_path / "node-0" / "failure.json").write_text(text)

    assert first_failure(order_file) is None


def test_a_node_that_is_started_again_takes_its_failure_back(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    for rank in (0, 1):
        leave_failure(order_file, rank, TrainingError(f"node {rank}"))

    forget_failure(order_file, 0)

    assert str(first_failure(order_file)) == "node 1"


def test_steps_of_an_earlier_job_are_no_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "osft")
    file = tmp_path / "metrics.jsonl"
    write_steps(file, *range(1, 9))
    progress = Progress(file)

    progress.show_new()

    assert caplog.messages == []


def test_the_node_that_failed_first_is_believed(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    leave_failure(order_file, 1, DataError("row 7 has no tokens"))
    leave_failure(order_file, 0, TrainingError("rank 1 is gone"))
    os.utime(tmp_path / "node-1" / "failure.json", ns=(1, 1))

    failure = first_failure(order_file)

    assert isinstance(failure, DataError)
    assert str(failure) == "row 7 has no tokens"


def test_a_preemption_is_told_apart_from_other_failures(tmp_path: Path) -> None:
    leave_failure(tmp_path / "order.json", 0, PreemptedError("stopped by SIGTERM after step 3"))

    assert isinstance(first_failure(tmp_path / "order.json"), PreemptedError)


def test_failures_of_an_earlier_job_are_forgotten(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    leave_failure(order_file, 0, TrainingError("no memory"))

    forget_failures(order_file)

    assert first_failure(order_file) is None
