"""What a training pod does before it trains: whether its runtime is one for torch, and what it takes back."""

import subprocess
import sys
from pathlib import Path

import pytest

from osft.errors import ConfigError, TrainingError
from osft.kubeflow.failures import first_failure, leave_failure


def run_node(order_file: Path, **environment: str) -> int:
    command = [sys.executable, "-m", "osft.kubeflow.node", str(order_file), "2"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("environment", "said"), [({}, "no PET_NNODES"), ({"PET_NNODES": "1", "PET_NODE_RANK": "0"}, "PET_NNODES=1")]
)
def test_a_runtime_that_is_not_for_torch_is_refused_and_the_step_finds_out_why(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    order_file = tmp_path / "order.json"

    exit_code = run_node(order_file, **environment)

    failure = first_failure(order_file)
    assert exit_code == 1
    assert isinstance(failure, ConfigError)
    assert f"train_num_nodes=2, but its runtime gives the pods {said}: train_runtime is not a torch" in str(failure)


def test_an_environment_that_is_half_prepared_is_left_as_the_reason(tmp_path: Path) -> None:
    run_node(tmp_path / "order.json", PET_NNODES="2", PET_NODE_RANK="1")

    assert "no PET_MASTER_ADDR" in str(first_failure(tmp_path / "order.json"))
    assert (tmp_path / "node-1" / "failure.json").is_file()


def test_a_node_that_is_started_again_takes_back_what_it_left(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    leave_failure(order_file, 1, TrainingError("node 0 is gone"))
    variables = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "1"}

    # There is no order, which is none of the failures that a node leaves.
    run_node(order_file, **variables)

    assert first_failure(order_file) is None
