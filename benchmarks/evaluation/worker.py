"""A job of :mod:`benchmarks.evaluation.jobs` in a fresh process, so that its memory and its caches are its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson

from benchmarks.data.worker import OFFLINE, ROOT, MeasurementError
from benchmarks.evaluation.material import Material

LINES_IN_ERROR = 20


def run_job(job: str, material: Material, scale_name: str, *, rounds: int, threads: int) -> dict[str, list[float]]:
    """Run one of :data:`benchmarks.evaluation.jobs.JOBS` and return what it measured.

    Raises:
        MeasurementError: if the job fails; with the last lines of what it said.
    """
    environment = {
        **os.environ,
        **OFFLINE,
        "OMP_NUM_THREADS": str(threads),
        "HF_DATASETS_CACHE": str(material.datasets_cache),
        # Bars of a log that nobody reads, and that only plain lm-eval draws.
        "TQDM_DISABLE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "measured.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.evaluation.jobs", job, material.root, scale_name, rounds, output]
        with log.open("wb") as file:
            status = subprocess.run(  # noqa: S603 our own module
                [str(part) for part in command], cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
            ).returncode
        if status != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_IN_ERROR:]
            raise MeasurementError(f"job {job} failed ({status}):\n" + "\n".join(lines))
        return orjson.loads(output.read_bytes())
