"""What the processes of a run do together."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from osft.errors import DataError
from osft.processes.group import process_group, sum_over_processes
from osft.processes.order import raise_failure_of, save_failure
from osft.subspace.attach import attach, trained_weights
from osft.subspace.decomposition import ProtectedSubspace, protect_leading_directions
from osft.subspace.exchange import spread
from osft.subspace.targets import find_targets
from osft.training.model_files import load_model
from tests.conftest import join_run, run_together


def sum_and_exchange(local_rank: int, port: int, model_folder: Path, folder: Path) -> None:
    """Run in a process of its own: sum a tensor, and decompose together what one process would decompose alone."""
    join_run(local_rank, 2, port)
    decomposed = []

    def protect(name: str, weight: torch.Tensor) -> ProtectedSubspace:
        decomposed.append(name)
        return protect_leading_directions(weight, 0.25)

    with process_group() as processes:
        summed = torch.full((2, 3), 10.0 + processes.global_rank)
        sum_over_processes(summed, processes)
        model = load_model(str(model_folder), processes.device).model
        targets = find_targets(model)
        attach(model, targets, spread(protect, model, targets))
    tensors = {
        f"{name} {part}": tensor.detach().clone()
        for name, weight in trained_weights(model)
        for part, tensor in (("left", weight.left.basis), ("right", weight.right.basis), ("scale", weight.scale))
    }
    tensors["summed"] = summed
    save_file(tensors, folder / f"{local_rank}.safetensors")
    (folder / f"{local_rank}.txt").write_text("\n".join(decomposed))


@pytest.fixture(scope="module")
def exchanged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exchanged")
    run_together(sum_and_exchange, 2, tiny_model, folder)
    return folder


@pytest.mark.slow
def test_every_process_has_the_sum_of_all(exchanged: Path) -> None:
    for rank in range(2):
        assert torch.equal(load_file(exchanged / f"{rank}.safetensors")["summed"], torch.full((2, 3), 21.0))


@pytest.mark.slow
def test_each_matrix_is_decomposed_by_one_process_and_known_to_all(exchanged: Path, tiny_model: Path) -> None:
    alone = load_model(str(tiny_model), torch.device("cpu")).model
    targets = find_targets(alone)
    attach(alone, targets, lambda _, weight: protect_leading_directions(weight, 0.25))

    shares = [(exchanged / f"{rank}.txt").read_text().split("\n") for rank in range(2)]

    assert sorted(shares[0] + shares[1]) == sorted(target.name for target in targets)
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    first, second = (load_file(exchanged / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    for name, weight in trained_weights(alone):
        torch.testing.assert_close(first[f"{name} left"], weight.left.basis)


def test_the_failure_of_a_process_is_raised_again_with_its_kind_and_message(tmp_path: Path) -> None:
    order_file = tmp_path / "order.json"
    raise_failure_of(order_file)

    save_failure(order_file, DataError("row 3: bad"))

    with pytest.raises(DataError, match="row 3: bad"):
        raise_failure_of(order_file)
