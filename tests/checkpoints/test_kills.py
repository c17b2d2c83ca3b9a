"""Nothing is lost, whatever moment a run is killed at."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.training.metrics import read_metrics

SCRIPT = Path(__file__).with_name("killed_runs.py")
KILLS = 30
KILLED = -9


@pytest.mark.slow
def test_a_run_that_was_killed_thirty_times_also_while_it_saved_ends_as_one_that_was_not(
    call: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    parameters = call("killed", num_epochs=40, checkpoint_every_steps=1)
    parameters_file = tmp_path / "parameters.json"
    parameters_file.write_text(json.dumps(parameters))

    finished = subprocess.run(
        [sys.executable, SCRIPT, parameters_file, str(KILLS)],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    *ends, last = json.loads(finished.stdout)
    assert [end["code"] for end in ends] == [KILLED] * KILLS
    assert last["code"] == 0, finished.stderr
    # Some of the kills came while a checkpoint, or the bases, were being written.
    assert any(name.endswith(".partial") for end in ends for name in end["left"])
    whole, killed = tmp_path / "killed-whole", tmp_path / "killed"
    assert (whole / "final/model.safetensors").read_bytes() == (killed / "final/model.safetensors").read_bytes()
    losses = [[step.loss for step in read_metrics(run / "metrics.jsonl")] for run in (whole, killed)]
    assert losses[0] == losses[1]
