"""Where a run trains: what the training step requests, and what it is told of a job."""

from pathlib import Path
from typing import Any

import pytest

from osft.errors import ConfigError
from osft.kubeflow.placement import Placement, place_training
from osft.kubeflow.trainjob import TrainJobSettings
from osft.workspace import Workspace
from tests.kubeflow.api_server.service import Service

CHOSEN: dict[str, Any] = {
    "runtime": "", "nodes": 1, "gpus_per_node": 2, "cpu": "8", "memory": "64Gi", "image": "", "queue": "", "labels": {},
    "node_selector": {}, "tolerations": [{"operator": "Exists"}], "env": {}, "deadline_hours": 0.0, "hub_secret": "s",
    "workspace_claim": "osft-workspace",
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_without_a_runtime_the_step_requests_the_gpus_itself(workspace: Workspace) -> None:
    placement = place_training(CHOSEN, run_id="r", workspace=workspace)

    assert placement == Placement(gpus="2", cpu="8", memory="64Gi", trainjob="")


def test_a_step_that_follows_a_job_holds_no_gpu(
    service: Service, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    monkeypatch.setenv("OSFT_TRAINER_IMAGE", "quay.io/a/trainer:1")

    placement = place_training({**CHOSEN, "runtime": "torch-distributed", "nodes": 3}, run_id="r", workspace=workspace)

    settings = TrainJobSettings.from_json(placement.trainjob)
    assert (placement.gpus, placement.cpu, placement.memory) == ("0", "1", "4Gi")
    assert (settings.nodes, settings.gpus_per_node, settings.image) == (3, 2, "quay.io/a/trainer:1")
    assert settings.tolerations == ({"operator": "Exists"},)
    assert not service.cluster.played


def test_a_runtime_that_is_not_there_is_known_before_anything_is_trained(
    service: Service, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))

    with pytest.raises(RuntimeError, match="torch-distribted.*Mend the parameters that it names"):
        place_training({**CHOSEN, "runtime": "torch-distribted", "image": "a/b:1"}, run_id="r", workspace=workspace)


def test_several_nodes_without_a_runtime_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="train_num_nodes=2 needs a TrainJob. Set train_runtime"):
        place_training({**CHOSEN, "nodes": 2}, run_id="r", workspace=workspace)


def test_a_job_without_an_image_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSFT_TRAINER_IMAGE", raising=False)

    with pytest.raises(ConfigError, match="train_image is empty"):
        place_training({**CHOSEN, "runtime": "torch-distributed"}, run_id="r", workspace=workspace)
