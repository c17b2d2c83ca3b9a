"""What is done about a job of the run that is there already. The pods run shell scripts in the place of a training."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from osft.config import TrainingConfig
from osft.errors import ConfigError, TrainingError
from osft.kubeflow.run import train_on_cluster
from osft.kubeflow.trainjob import RUN_ANNOTATION, TrainJobSettings, name_of_run
from osft.workspace import Workspace
from tests.kubeflow.api_server.containers import SHELL_IMAGE
from tests.kubeflow.api_server.examples import shell_job
from tests.kubeflow.api_server.service import Service

RUN = "run-1"
NAME = name_of_run(RUN)


@pytest.fixture
def workspace(service: Service, workspace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    monkeypatch.setattr("osft.kubeflow.follow.SECONDS_BETWEEN_LOOKS", 1)
    monkeypatch.setattr("osft.kubeflow.lifecycle.SECONDS_BETWEEN_LOOKS", 0.2)
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


def leave_job(service: Service, script: str, **annotations: str) -> None:
    """Create a job of the run's name that the step does not know."""
    job = shell_job(script)
    job["metadata"] = {"name": NAME, "annotations": annotations}
    service.create(job)


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


def test_a_job_that_failed_is_deleted_and_a_retry_makes_another(service: Service, workspace: Workspace) -> None:
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")
    # The same script fails the first time and succeeds the second.
    script = f"mkdir {workspace.root}/first || exit 0; echo no luck; exit 4"

    with pytest.raises(TrainingError, match="ended with exit code 4"):
        train(workspace, script)
    is_left = service.cluster.store.has("trainjobs", "science", NAME)
    train(workspace, script)

    assert not is_left
    assert len(service.cluster.played) == 2


def test_a_job_of_the_run_that_was_told_something_else_is_replaced(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    leave_job(service, "exec sleep 60", **{RUN_ANNOTATION: RUN})

    train(workspace, finish(workspace))

    assert f"replacing TrainJob {NAME}, which has failed or was told something else" in caplog.messages
    assert len(service.cluster.played) == 2


@pytest.mark.parametrize(
    ("annotations", "whose"), [({}, "of no run of this pipeline"), ({RUN_ANNOTATION: "run.1"}, "of run run.1")]
)
def test_a_job_that_is_not_of_the_run_is_left_alone(
    service: Service, workspace: Workspace, annotations: dict[str, str], whose: str
) -> None:
    leave_job(service, "exec sleep 60", **annotations)

    with pytest.raises(ConfigError, match=f"there is a TrainJob {NAME} {whose} in namespace science. It is left alone"):
        train(workspace, finish(workspace))

    assert service.cluster.store.has("trainjobs", "science", NAME)


def test_a_new_job_waits_for_the_pods_of_the_one_before_and_says_so(
    service: Service,
    workspace: Workspace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "osft")
    up, free = tmp_path / "up", tmp_path / "free"
    wait = f"until [ -e {free} ]; do sleep 0.05; done"
    leave_job(service, f"trap '{wait}; exit 143' TERM; touch {up}; while :; do sleep 0.05; done")
    service.wait_for(up.exists)
    old = service.pod()
    service.cluster.delete_job("science", NAME, "Background")
    service.wait_for(old.stopping.is_set)
    reminder = f"waiting for what is left of the earlier TrainJob {NAME}: pod {old.name}: Running (being deleted)"

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, workspace, finish(workspace))
        service.wait_for(lambda: training.done() or reminder in caplog.messages)
        played_before = len(service.cluster.played)
        free.touch()
        training.result(timeout=30)

    assert reminder in caplog.messages
    assert (played_before, len(service.cluster.played)) == (1, 2)


def test_the_retries_of_a_step_have_one_deadline(service: Service, workspace: Workspace) -> None:
    train(workspace, "true")
    order_file = workspace.run_directory(RUN) / "trainjob" / "order.json"
    os.utime(order_file, (1, 1))

    with pytest.raises(TrainingError, match=f"its last state: it was not created yet.* delete {order_file} and retry"):
        train(workspace, "true")

    assert len(service.cluster.played) == 1
