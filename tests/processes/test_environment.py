"""What the environment says about the run that a process belongs to."""

import os

import pytest
import torch

from osft.config import TrainingConfig
from osft.errors import ConfigError
from osft.processes.environment import Surroundings

WORKER = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29500"}
BY_TORCHRUN = {**WORKER, "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
NODE = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
NEEDED = {
    "model_path": "m",
    "data_path": "d",
    "unfreeze_rank_ratio": 0.5,
    "effective_batch_size": 1,
    "max_tokens_per_gpu": 8,
    "max_seq_len": 8,
    "learning_rate": 1e-3,
    "ckpt_output_dir": "o",
}


def test_a_process_that_torchrun_started_is_a_worker_of_its_run() -> None:
    surroundings = Surroundings.read(BY_TORCHRUN)

    assert surroundings.is_worker
    assert (surroundings.global_rank, surroundings.local_rank, surroundings.world_size) == (3, 1, 4)
    assert (surroundings.nnodes, surroundings.node_rank, surroundings.nproc_per_node) == (2, 1, 2)
    assert surroundings.rdzv_endpoint == "10.0.0.5:29500"


def test_a_worker_in_a_pod_of_kubeflow_trainer_is_a_worker_first() -> None:
    assert Surroundings.read({**NODE, **WORKER}).is_worker


def test_a_pod_of_kubeflow_trainer_is_a_node() -> None:
    surroundings = Surroundings.read(NODE)

    assert not surroundings.is_worker
    assert (surroundings.nnodes, surroundings.node_rank, surroundings.nproc_per_node) == (2, 1, 8)
    assert surroundings.rdzv_endpoint == "job-node-0-0.job:29400"


@pytest.mark.parametrize("variables", [{}, {"RANK": "", "PET_NNODES": ""}, {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_without_a_number_of_its_own_or_of_nodes_a_process_is_alone(variables: dict[str, str]) -> None:
    surroundings = Surroundings.read(variables)

    assert not surroundings.is_worker
    assert surroundings.complete({"seed": 1}) == {"seed": 1}


def test_a_single_prepared_node_needs_no_one_to_meet() -> None:
    surroundings = Surroundings.read({"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "PET_MASTER_ADDR": ""})

    assert surroundings.complete({}) == {"nnodes": 1, "nproc_per_node": 2}


def test_what_the_environment_decides_makes_a_whole_configuration() -> None:
    for variables in (NODE, WORKER, BY_TORCHRUN):
        config = TrainingConfig(**Surroundings.read(variables).complete(NEEDED))

        assert config.rdzv_id is not None
    assert TrainingConfig(**Surroundings.read(NODE).complete(NEEDED)).node_rank == 1


def test_an_address_with_colons_is_put_in_brackets() -> None:
    surroundings = Surroundings.read({**NODE, "PET_MASTER_ADDR": "fd00::5"})

    assert TrainingConfig(**surroundings.complete(NEEDED)).rdzv_endpoint == "[fd00::5]:29400"


@pytest.mark.parametrize("word", ["auto", "cpu"])
def test_a_word_for_the_processes_of_a_node_means_what_torchrun_takes_it_for(word: str) -> None:
    surroundings = Surroundings.read({**NODE, "PET_NPROC_PER_NODE": word})

    on_gpu = word == "auto" and torch.cuda.is_available()
    assert surroundings.nproc_per_node == (torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nnodes": 3}, r"nnodes=3 was given, but the job that this runs in has PET_NNODES=2. Leave it out"),
        ({"nproc_per_node": 1}, r"nproc_per_node=1 was given.* PET_NPROC_PER_NODE=8"),
        ({"node_rank": 0}, r"node_rank=0 was given.* PET_NODE_RANK=1"),
        ({"rdzv_endpoint": "a:1"}, r"rdzv_endpoint=a:1 .* PET_MASTER_ADDR:PET_MASTER_PORT=job-node-0-0.job:29400"),
    ],
)
def test_an_argument_that_contradicts_the_environment_is_an_error_that_names_both(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Surroundings.read(NODE).complete(given)


def test_an_argument_that_agrees_with_the_environment_is_taken() -> None:
    assert Surroundings.read(NODE).complete({"nnodes": 2, "rdzv_id": 7})["rdzv_id"] == 7


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({**WORKER, "WORLD_SIZE": ""}, r"has RANK=3 but no WORLD_SIZE. Set both"),
        ({**WORKER, "LOCAL_RANK": "x"}, r"LOCAL_RANK='x', which is not a whole number from 0 on"),
        ({**WORKER, "RANK": "-1"}, r"RANK='-1', which is not a whole number"),
        ({**WORKER, "RANK": "4"}, r"RANK=4, which is not below WORLD_SIZE=4"),
        ({**WORKER, "WORLD_SIZE": "0"}, r"WORLD_SIZE='0', which is not a whole number from 1 on"),
        ({**WORKER, "MASTER_PORT": "70000"}, r"MASTER_PORT=70000, which is not below"),
        ({**WORKER, "MASTER_ADDR": ""}, r"has RANK=3 but no MASTER_ADDR"),
        ({**NODE, "PET_NNODES": "1:3"}, r"PET_NNODES='1:3', which is not a whole number"),
        ({**NODE, "PET_NODE_RANK": "2"}, r"PET_NODE_RANK=2, which is not below PET_NNODES=2"),
        ({**NODE, "PET_NODE_RANK": ""}, r"has PET_NNODES=2 but no PET_NODE_RANK"),
        ({**NODE, "PET_MASTER_PORT": ""}, r"has PET_NNODES=2 but no PET_MASTER_PORT"),
        ({**NODE, "PET_NPROC_PER_NODE": "many"}, r"PET_NPROC_PER_NODE='many': Unsupported"),
        ({**NODE, "PET_NPROC_PER_NODE": "0"}, r"PET_NPROC_PER_NODE='0', which leaves no process"),
    ],
)
def test_a_malformed_variable_is_an_error_that_names_it(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Surroundings.read(variables)
