"""What the processes of a run do together."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from osft.errors import DataError
from osft.training.distributed import copy_from_first, process_group, sum_over_processes
from osft.training.order import raise_failure_of, save_failure


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


def test_the_failure_of_a_process_is_raised_again_with_its_kind_and_message(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    raise_failure_of(order_file)

    save_failure(order_file, DataError("row 3: bad"))

    with pytest.raises(DataError, match="row 3: bad"):
        raise_failure_of(order_file)
