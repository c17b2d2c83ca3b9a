import logging
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from osft.data import progress
from osft.data.progress import RowProgress
from osft.logs import configure_logging

logger = logging.getLogger("osft.test_progress")


@contextmanager
def terminal_as_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, list[str]]]:
    """Log to a terminal; yield it and the list that gets, in the end, all that it showed."""
    reading, writing = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    osft_logger = logging.getLogger("osft")
    before = (osft_logger.handlers, osft_logger.level, osft_logger.propagate)
    shown: list[str] = []
    with os.fdopen(writing, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        configure_logging()
        yield terminal, shown
        osft_logger.handlers, osft_logger.level, osft_logger.propagate = before
        terminal.flush()
        shown.append(os.read(reading, 1 << 16).decode())
    os.close(reading)


def test_counts_are_logged_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)

    with RowProgress(logger, "validated") as counts:
        counts.advance(1, 1_500_000)
        counts.advance(2, 500_000)

    assert [record.getMessage() for record in caplog.records] == [
        "validated 1 rows, 1.5 MB",
        "validated 3 rows, 2.0 MB",
    ]


def test_many_calls_give_no_more_lines_than_the_clock_allows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counts = RowProgress(logger, "tokenized")

    for _ in range(1000):
        counts.advance(1, 10)
    counts.log()

    assert [record.getMessage() for record in caplog.records] == ["tokenized 1000 rows, 0.0 MB"]


def test_a_file_on_its_way_is_logged_with_its_size_if_that_is_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)

    with RowProgress(logger, "downloaded").transfer("a.jsonl") as show:
        show(1_000_000, None)
        show(2_000_000, 4_000_000)

    assert [record.getMessage() for record in caplog.records] == [
        "fetched 1.0 MB of a.jsonl",
        "fetched 2.0 of 4.0 MB of a.jsonl",
    ]


def test_a_terminal_shows_bars_and_the_log_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_INTERVAL_SECONDS", 0.0)

    with (
        terminal_as_stderr(monkeypatch) as (_, shown),
        RowProgress(logger, "downloaded", total_bytes=4_000_000) as counts,
    ):
        with counts.transfer("[odd].jsonl") as show:
            show(500, 1000)
            logger.info("above the bar")
        counts.advance(7, 2_000_000)

    assert "fetching [odd].jsonl" in shown[0]
    assert "downloaded 7 rows, 2.0 MB" in shown[0]
    assert " 50%" in shown[0]
    line = next(line for line in shown[0].split("\n") if "above the bar" in line)
    # Only what follows the last clearing of the line is left to see.
    assert "fetching" not in line.split("\x1b[2K")[-1]


def test_the_terminal_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_as_stderr(monkeypatch) as (terminal, _):
        handler = logging.getLogger("osft").handlers[0]
        with pytest.raises(ValueError, match="bad row"), RowProgress(logger, "validated") as counts:
            counts.advance(1, 1)
            raise ValueError("bad row")

        assert sys.stderr is terminal
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is terminal
