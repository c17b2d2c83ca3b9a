"""The step that says where the training runs, called as a function."""

from pathlib import Path
from typing import Any

import pytest

from components.training_placement import training_placement

CHOSEN: dict[str, Any] = {
    "run_id": "run-1", "runtime": "", "num_nodes": 1, "gpus_per_node": 2, "cpu": "8", "memory": "64Gi", "image": "",
    "queue": "", "labels": {}, "node_selector": {}, "tolerations": [], "env": {}, "deadline_hours": 0.0,
    "hub_secret": "", "workspace_pvc": "osft-workspace",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace."""
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path))


def test_training_in_the_step_requests_what_the_parameters_say_as_texts() -> None:
    placement = training_placement.python_func(**CHOSEN)

    assert tuple(placement) == ("2", "8", "64Gi", "")


def test_several_nodes_in_one_step_end_the_run_before_it_trains() -> None:
    with pytest.raises(ValueError, match="train_num_nodes=2 needs a TrainJob"):
        training_placement.python_func(**{**CHOSEN, "num_nodes": 2})
