"""Rates, ratios and goals of the benchmark of the data steps."""

import io

import pytest
from rich.console import Console

from benchmarks.data.report import (
    Goal,
    Line,
    compare_sizes,
    compare_tasks,
    describe_download,
    print_lines,
)
from benchmarks.data.worker import Measurement, Timing
from benchmarks.report import Origin

ORIGIN = Origin(machine="a machine", command="a command")


def measured(seconds: float, *, rows: int = 600_000, peak_bytes: int = 0, size_bytes: int | None = None) -> Measurement:
    timing = Timing(
        rows=rows, seconds=seconds, main_peak_bytes=peak_bytes // 2, size_bytes=size_bytes, again_seconds=0.5
    )
    return Measurement(timing=timing, peak_bytes=peak_bytes)


def values(lines: list[Line]) -> dict[str, float]:
    return {line.what: line.value for line in lines}


def test_a_rate_is_the_median_of_the_rounds() -> None:
    rounds = [{"validate": measured(seconds)} for seconds in (10.0, 1.0, 6.0)]

    line = compare_tasks(600_000, rounds)[0]

    assert line.result(ORIGIN).metric == "validation, rows/s, 600,000 rows"
    assert (line.value, line.result(ORIGIN).goal, line.result(ORIGIN).met) == (100_000, 60_000, True)


def test_a_ratio_is_taken_within_each_round() -> None:
    rounds = [
        {"process": measured(2.0), "encode": measured(1.0)},
        {"process": measured(10.0), "encode": measured(9.0)},
        {"process": measured(10.0), "encode": measured(8.0)},
    ]

    lines = compare_tasks(600_000, rounds)

    ratio = next(line for line in lines if line.what.startswith("processing / encode_batch"))
    assert ratio.value == pytest.approx(0.8)
    assert ratio.result(ORIGIN).goal == 0.8


def test_a_peer_that_sat_a_round_out_is_compared_in_the_others() -> None:
    rounds = [{"process": measured(2.0), "peer": measured(8.0)}, {"process": measured(100.0)}]

    ratios = values(compare_tasks(600_000, rounds))

    assert ratios["processing / instructlab-training 0.16.2 (2 processes), rows/s"] == 4.0


def test_without_the_peer_there_is_no_line_of_it() -> None:
    lines = compare_tasks(600_000, [{"process": measured(2.0)}])

    assert not [line for line in lines if "instructlab" in line.what]


def test_memory_is_the_largest_of_the_rounds() -> None:
    rounds = [{"validate": measured(1.0, peak_bytes=peak)} for peak in (800, 1_200_000_000, 400)]

    lines = compare_tasks(600_000, rounds)

    peak = next(line for line in lines if line.what == "validation, peak memory in bytes")
    assert (peak.value, peak.result(ORIGIN).met) == (1_200_000_000, False)


def test_growth_has_a_goal_where_the_smaller_file_fills_the_buffers() -> None:
    rounds = {
        size: [{"validate": measured(1.0, peak_bytes=peak), "process": measured(1.0, peak_bytes=peak)}]
        for size, peak in ((20_000, 100), (200_000, 200), (2_000_000, 250))
    }

    lines = [line for line in compare_sizes(rounds) if line.what.startswith("validation")]

    assert [(line.value, line.goal is None) for line in lines] == [(2.0, True), (1.25, False)]
    assert lines[1].result(ORIGIN).met is False


def test_a_download_is_measured_in_bytes_of_rows() -> None:
    lines = values(describe_download("jsonl.gz", measured(4.0, size_bytes=200_000_000)))

    assert lines["download of 200.0 MB, jsonl.gz, bytes of rows/s"] == 50_000_000
    assert lines["download asked for again, unchanged, jsonl.gz, s"] == 0.5


@pytest.mark.parametrize(("at_least", "value", "met"), [(True, 2.0, True), (True, 1.9, False), (False, 2.1, False)])
def test_a_goal_is_a_lower_or_an_upper_bound(at_least: bool, value: float, met: bool) -> None:
    goal = Goal(bound=2.0, at_least=at_least)

    assert goal.is_met(value) is met


def test_the_table_has_a_column_a_size_and_marks_what_is_missed() -> None:
    console = Console(record=True, width=150, file=io.StringIO())
    goal = Goal(bound=60_000, at_least=True)
    lines = [
        Line(what="validation, rows/s", value=70_000, rows=20_000, goal=goal),
        Line(what="validation, rows/s", value=50_000, rows=200_000, goal=goal),
        Line(what="a download", value=0.25),
    ]

    print_lines(console, lines)

    text = console.export_text()
    assert "20,000 rows" in text
    assert "200,000 rows" in text
    assert "50,000 (missed)" in text
    assert "at least 60,000" in text
    assert "70,000 (missed)" not in text
    assert "0.25" in text
