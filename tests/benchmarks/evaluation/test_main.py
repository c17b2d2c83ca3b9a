"""The benchmark of the evaluation, from its jobs to what it reports."""

from pathlib import Path

import pytest

from benchmarks.data.worker import MeasurementError
from benchmarks.evaluation.__main__ import JOB_NAMES, describe_all
from benchmarks.evaluation.jobs import JOBS
from benchmarks.evaluation.material import Material, write_material
from benchmarks.evaluation.worker import run_job
from benchmarks.report import Origin


@pytest.mark.slow
def test_a_job_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"job known failed \(1\):\n(.*\n)*.*the folder does not exist"):
        run_job("known", Material(tmp_path), "smoke", rounds=1, threads=1)


def test_everything_is_measured_and_reported(tmp_path: Path) -> None:
    material = write_material(tmp_path, "smoke")

    measured = {job: JOBS[job](material, "smoke", 1) for job in JOB_NAMES}

    results = describe_all(Origin(machine="", command=""), material, "smoke", measured)
    assert all(result.value > 0 for result in results)
    goals = {result.metric: result.goal for result in results if result.goal is not None}
    assert sorted(goals.values()) == [1.05, 1.1, 2.0]
    assert all("12 documents" in metric for metric in goals if "memory" not in metric)
