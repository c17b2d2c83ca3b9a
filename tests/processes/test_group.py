"""What the processes of a run do together."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from osft.errors import DataError
from osft.processes.group import copy_from_first, process_group, sum_over_processes
from osft.processes.order import raise_failure_of, save_failure
from osft.subspace.attach import attach
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.targets import find_targets
from osft.training.model_files import load_model
from osft.training.preparation import made_by_attach


def join_and_exchange(local_rank: int, port: int, folder: str) -> None:
    """Run in a process of its own: exchange a tensor that differs from process to process."""
    import os

    os.environ.update(
        RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with process_group() as processes:
        copied, summed = (torch.full((2, 3), 10.0 + processes.global_rank) for _ in range(2))
        copy_from_first([copied], processes)
        sum_over_processes([summed], processes)
        save_file({"copied": copied, "summed": summed}, Path(folder) / f"{processes.global_rank}.safetensors")


@pytest.mark.slow
def test_every_process_has_the_tensor_of_the_first_and_the_sum_of_all(tmp_path: Path, free_port: int) -> None:
    mp.spawn(join_and_exchange, args=(free_port, str(tmp_path)), nprocs=2)

    for rank in range(2):
        tensors = load_file(tmp_path / f"{rank}.safetensors")
        assert torch.equal(tensors["copied"], torch.full((2, 3), 10.0))
        assert torch.equal(tensors["summed"], torch.full((2, 3), 21.0))


def attach_differently(local_rank: int, port: int, model_folder: str, folder: str) -> None:
    """Run in a process of its own: attach, change what the second process has, and take the first one's."""
    import os

    os.environ.update(
        RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    for factored in (False, True):
        with process_group() as processes:
            model = load_model(model_folder, processes.device).model
            attach(
                model,
                find_targets(model),
                lambda _, weight: protect_leading_directions(weight, 0.25),
                factored=factored,
            )
            if local_rank == 1:
                for tensor in made_by_attach(model):
                    tensor.data.add_(1)
            copy_from_first(made_by_attach(model), processes)
        tensors = {str(number): tensor.detach().clone() for number, tensor in enumerate(made_by_attach(model))}
        save_file(tensors, Path(folder) / f"{factored}-{local_rank}.safetensors")


@pytest.mark.slow
def test_every_process_expresses_its_gradients_in_the_bases_of_the_first(
    tiny_model: Path, tmp_path: Path, free_port: int
) -> None:
    mp.spawn(attach_differently, args=(free_port, str(tiny_model), str(tmp_path)), nprocs=2)

    for factored in (False, True):
        first, second = (load_file(tmp_path / f"{factored}-{rank}.safetensors") for rank in range(2))
        # Two bases, a scale and a core a weight; or two sides, what is fixed and three factors.
        assert len(first) == 14 * (6 if factored else 4)
        assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_the_failure_of_a_process_is_raised_again_with_its_kind_and_message(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    raise_failure_of(order_file)

    save_failure(order_file, DataError("row 3: bad"))

    with pytest.raises(DataError, match="row 3: bad"):
        raise_failure_of(order_file)
