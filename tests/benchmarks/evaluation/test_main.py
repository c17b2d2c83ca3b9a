"""The benchmark of the evaluation, from its options to its file."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from benchmarks.data.worker import ROOT, MeasurementError
from benchmarks.evaluation.material import Material
from benchmarks.evaluation.worker import run_job


@pytest.mark.slow
def test_a_job_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"job known failed \(1\):\n(.*\n)*.*the folder does not exist"):
        run_job("known", Material(tmp_path), "smoke", rounds=1, threads=1)


@pytest.mark.slow
def test_the_benchmark_measures_everything(tmp_path: Path) -> None:
    options = ["--scale", "smoke", "--rounds", "1", "--workdir", tmp_path, "--output", tmp_path / "evaluation.json"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evaluation", *options],
        cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    results = {entry["metric"]: entry for entry in orjson.loads((tmp_path / "evaluation.json").read_bytes())}
    assert all(entry["value"] > 0 for entry in results.values())
    goals = {metric: entry["goal"] for metric, entry in results.items() if entry["goal"] is not None}
    assert sorted(goals.values()) == [1.05, 1.1, 2.0]
    assert all("12 documents" in metric for metric in goals if "memory" not in metric)
    # What a small model takes says little of time; that it is held alone shows at any size.
    assert results["peak memory of evaluating two models / of one"]["value"] < 1.3
