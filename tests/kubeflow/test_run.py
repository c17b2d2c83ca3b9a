"""What is done about a job of the run that is there already. The pods run shell scripts in the place of a training."""

import logging
from pathlib import Path
from typing import Any

import pytest

from osft.config import TrainingConfig
from osft.errors import TrainingError
from osft.kubeflow.run import train_on_cluster
from osft.kubeflow.trainjob import TrainJobSettings
from osft.workspace import Workspace
from tests.kubeflow.api_server.containers import SHELL_IMAGE
from tests.kubeflow.api_server.service import Service

RUN = "run-1"


@pytest.fixture
def workspace(service: Service, workspace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    monkeypatch.setattr("osft.kubeflow.follow.SECONDS_BETWEEN_LOOKS", 1)
    return Workspace(workspace_folder)


def train(workspace: Workspace, script: str, **changes: Any) -> None:
    config = TrainingConfig(
        **{
            "model_path": "model",
            "data_path": "train.parquet",
            "unfreeze_rank_ratio": 0.5,
            "effective_batch_size": 2,
            "max_tokens_per_gpu": 64,
            "max_seq_len": 64,
            "learning_rate": 1e-3,
            "ckpt_output_dir": str(workspace.root / "training"),
            **changes,
        }
    )
    settings = TrainJobSettings(
        runtime="torch-distributed", image=SHELL_IMAGE, gpus_per_node=0, env={"SCRIPT": script}, deadline_hours=0.01
    )
    train_on_cluster(config, settings, run_id=RUN, workspace=workspace)


def finish(workspace: Workspace) -> str:
    """Return a script that leaves what a finished training does."""
    return f"mkdir -p {workspace.root}/training; echo trained >> {workspace.root}/training/training.json"


def test_a_training_that_has_finished_is_not_done_again(service: Service, workspace: Workspace) -> None:
    train(workspace, finish(workspace))
    service.wait_for(lambda: not service.cluster.controllers)

    train(workspace, finish(workspace))

    assert len(service.cluster.played) == 1
    assert (workspace.root / "training" / "training.json").read_text() == "trained\n"


def test_another_order_of_the_same_run_is_trained_and_the_old_result_does_not_pass_for_its_own(
    service: Service, workspace: Workspace
) -> None:
    train(workspace, finish(workspace))

    train(workspace, finish(workspace), learning_rate=2e-3)

    assert len(service.cluster.played) == 2
    assert (workspace.root / "training" / "training.json").read_text() == "trained\n"


def test_a_job_that_failed_is_replaced_by_a_retry(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")
    # The same script fails the first time and succeeds the second.
    script = f"mkdir {workspace.root}/first || exit 0; echo no luck; exit 4"

    with pytest.raises(TrainingError, match="ended with exit code 4"):
        train(workspace, script)
    train(workspace, script)

    assert "replacing TrainJob osft-run-1, which has failed or was told something else" in caplog.messages
    assert len(service.cluster.played) == 2
