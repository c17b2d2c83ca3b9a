"""What a step reports, in the file, in the log and on a terminal."""

import errno
import logging
import os
import pty
import sys
from pathlib import Path

import pytest
import torch

from osft.logs import configure_logging
from osft.training.metrics import StepMetrics, peak_memory_gib, read_metrics, reporting


def make_metrics(step: int) -> StepMetrics:
    return StepMetrics(
        step=step, total_steps=3, epoch=step / 3, loss=2.5, learning_rate=1e-5, gradient_norm=0.5, loss_tokens=10,
        tokens_per_second=123.0, seconds=0.1, peak_memory_gib=1.0,
    )  # fmt: skip


def read_to_end(descriptor: int) -> str:
    """Return all that was written to a terminal whose other side is closed."""
    parts = []
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            while part := file.read(1 << 16):
                parts.append(part)
        except OSError as error:
            # How Linux says that the other side is closed.
            assert error.errno == errno.EIO
    return b"".join(parts).decode()


def test_every_step_is_in_the_file_before_the_next_one_starts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"

    with reporting(path, 3) as report:
        report(make_metrics(1))
        after_one = read_metrics(path)
        report(make_metrics(2))

    assert after_one == [make_metrics(1)]
    assert read_metrics(path) == [make_metrics(1), make_metrics(2)]


def test_a_process_that_is_not_the_first_reports_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), reporting(None, 3) as report:
        report(make_metrics(1))

    assert not caplog.records


def test_a_log_has_the_first_step_and_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), reporting(tmp_path / "metrics.jsonl", 3) as report:
        for step in (1, 2, 3):
            report(make_metrics(step))

    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["step 1 of 3", "step 3 of 3"]


def test_a_terminal_has_a_bar_and_log_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = pty.openpty()
    osft_logger = logging.getLogger("osft")
    before = (osft_logger.handlers, osft_logger.level, osft_logger.propagate)
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        configure_logging()
        handler = osft_logger.handlers[0]

        with reporting(tmp_path / "metrics.jsonl", 3) as report:
            report(make_metrics(1))
            osft_logger.info("something happened")
            report(make_metrics(3))

    osft_logger.handlers, osft_logger.level, osft_logger.propagate = before
    shown = read_to_end(reading)
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is terminal
    assert "3/3" in shown
    assert "loss 2.5000, 123 tokens/s" in shown
    assert "step 1 of 3" not in shown
    line = next(line for line in shown.split("\n") if "something happened" in line)
    assert "tokens/s" not in line


def test_the_peak_memory_on_a_cpu_is_that_of_the_process() -> None:
    before = peak_memory_gib(torch.device("cpu"))
    # 256 MiB, written to, so that the pages are really there.
    block = torch.ones(64 << 20)
    after = peak_memory_gib(torch.device("cpu"))

    assert 0 < before <= after
    assert after >= block.nbytes / (1 << 30)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')

    with pytest.raises(RuntimeError, match=r"metrics\.jsonl: not a metrics file of this version"):
        read_metrics(path)


def test_a_run_that_goes_on_keeps_the_steps_before_and_drops_what_came_after_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with reporting(path, 3) as report:
        report(make_metrics(1))
        report(make_metrics(2))
    # What a killed process leaves of a line.
    with path.open("a") as file:
        file.write('{"step":3,"loss":')

    with reporting(path, 3, steps_before=1) as report:
        report(make_metrics(2))

    assert read_metrics(path) == [make_metrics(1), make_metrics(2)]


def test_steps_before_that_the_file_lacks_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"

    with reporting(path, 3, steps_before=2) as report:
        report(make_metrics(3))

    assert "metrics.jsonl: has 0 of the 2 steps before; the rest is lost" in caplog.text
    assert read_metrics(path) == [make_metrics(3)]
