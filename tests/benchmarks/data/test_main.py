"""The benchmark of the data steps, from its options to its file."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from benchmarks.data.__main__ import count_rounds, find_peer
from benchmarks.data.worker import ROOT, MeasurementError, Task, measure

# A task that keeps a process of 64 MB beside its own while it says that it did three rows.
TASK = """
import json, pathlib, subprocess, sys
child = "import sys; memory = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
process.stdout.readline()
try:
    process.wait(0.5)
except subprocess.TimeoutExpired:
    process.communicate()
measured = {"rows": 3, "seconds": 1.5, "main_peak_bytes": 1}
(pathlib.Path(sys.argv[2]) / "measured.json").write_text(json.dumps(measured))
"""


def test_memory_of_all_processes_counts(tmp_path: Path) -> None:
    task = Task(command=(sys.executable, "-c", TASK), source="", tokenizer=tmp_path, rows=3)

    measurement = measure(task, tmp_path)

    assert measurement.peak_bytes > 64 << 20
    assert measurement.rows_per_second == 2.0
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_loses_rows_is_an_error(tmp_path: Path) -> None:
    task = Task(command=(sys.executable, "-c", TASK), source="", tokenizer=tmp_path, rows=4)

    with pytest.raises(MeasurementError, match="3 of 4 rows came out. Rates compare for equal rows only."):
        measure(task, tmp_path)


def test_a_task_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    task = Task(command=(sys.executable, "-c", "raise SystemExit('no rows')"), source="", tokenizer=tmp_path, rows=1)

    with pytest.raises(MeasurementError, match=r"failed \(1\):\nno rows"):
        measure(task, tmp_path)


@pytest.mark.parametrize(("rows", "rounds"), [(20_000, 5), (200_000, 2), (2_000_000, 1)])
def test_large_files_are_measured_in_fewer_rounds(rows: int, rounds: int) -> None:
    assert count_rounds(rows, 5) == rounds


def test_a_peer_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert find_peer(tmp_path / "bin" / "python") is None
    assert find_peer(Path(sys.executable)) == Path(sys.executable)


@pytest.mark.slow
def test_the_benchmark_measures_everything_but_the_peer(tmp_path: Path) -> None:
    options = ["--rows", "500", "--rounds", "1", "--workdir", tmp_path / "work", "--output", tmp_path / "data.json"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *options, "--skip-peer"],
        cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "The peer was left out" in done.stdout
    results = {entry["metric"]: entry for entry in orjson.loads((tmp_path / "data.json").read_bytes())}
    assert all(entry["value"] > 0 for entry in results.values())
    for metric in ("validation, rows/s", "processing, rows/s", "processing asked for again, s"):
        assert f"{metric}, 500 rows" in results
    assert results["processing / encode_batch alone (2 threads), rows/s, 500 rows"]["goal"] == 0.8
    assert len([metric for metric in results if metric.startswith("download asked for again")]) == 2
