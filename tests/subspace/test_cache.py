"""Decompositions on disk: found again bit for bit, never mistaken, never trusted when damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from osft.subspace.cache import DecompositionCache
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions

RATIO = 0.5


class CountedDecomposition:
    """The decomposition, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def of(self, weight: Tensor, ratio: float = RATIO) -> Callable[[], ProtectedSubspace]:
        def compute() -> ProtectedSubspace:
            self.calls += 1
            return protect_leading_directions(weight, ratio)

        return compute


@pytest.fixture
def decomposition() -> CountedDecomposition:
    return CountedDecomposition()


def make_weight(rows: int = 6, columns: int = 10, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)


def ask(
    folder: Path | None, weight: Tensor, decomposition: CountedDecomposition, ratio: float = RATIO
) -> ProtectedSubspace:
    rank = frozen_rank(*weight.shape, ratio)
    return DecompositionCache(folder).get_or_compute(weight, rank, decomposition.of(weight, ratio))


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_second_time_nothing_is_computed_and_not_a_bit_differs(
    tmp_path: Path, decomposition: CountedDecomposition, dtype: torch.dtype
) -> None:
    weight = make_weight(dtype=dtype)
    computed = ask(tmp_path, weight, decomposition)

    read = ask(tmp_path, weight.clone(), decomposition)

    assert decomposition.calls == 1
    assert torch.equal(read.left, computed.left)
    assert torch.equal(read.right, computed.right)
    assert read.left.stride() == computed.left.stride()
    assert read.left.dtype == read.right.dtype == dtype


def test_without_a_folder_the_same_bits_are_computed_each_time(
    tmp_path: Path, decomposition: CountedDecomposition
) -> None:
    weight = make_weight()
    cached = ask(tmp_path, weight, decomposition)

    computed = ask(None, weight, decomposition)

    assert decomposition.calls == 2
    assert torch.equal(computed.left, cached.left)
    assert torch.equal(computed.right, cached.right)


def test_a_cache_counts_what_it_did_not_compute(tmp_path: Path, decomposition: CountedDecomposition) -> None:
    weight = make_weight()
    cache = DecompositionCache(tmp_path)

    for _ in range(3):
        cache.get_or_compute(weight, 3, decomposition.of(weight))

    assert cache.hits == 2


@pytest.mark.parametrize(
    ("other", "ratio"),
    [
        (make_weight() + 1e-6, RATIO),
        (make_weight().reshape(10, 6), RATIO),
        (make_weight().T, RATIO),
        (make_weight().to(torch.float64), RATIO),
        (make_weight(), 0.2),
    ],
    ids=["values", "shape", "transposed", "dtype", "ratio"],
)
def test_what_differs_in_anything_is_another_decomposition(
    tmp_path: Path, decomposition: CountedDecomposition, other: Tensor, ratio: float
) -> None:
    ask(tmp_path, make_weight(), decomposition)

    found = ask(tmp_path, other, decomposition, ratio)

    assert decomposition.calls == 2
    assert torch.equal(found.right, protect_leading_directions(other, ratio).right.to(other.dtype))


def test_a_slice_of_a_stack_is_found_by_its_values(tmp_path: Path, decomposition: CountedDecomposition) -> None:
    weight = make_weight()
    ask(tmp_path, weight, decomposition)

    ask(tmp_path, torch.stack([weight + 1, weight])[1], decomposition)

    assert decomposition.calls == 1


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, -1])
def test_a_cut_file_is_computed_again_with_a_warning_and_mended(
    tmp_path: Path, decomposition: CountedDecomposition, caplog: pytest.LogCaptureFixture, kept_bytes: int
) -> None:
    weight = make_weight()
    expected = ask(tmp_path, weight, decomposition)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept_bytes])

    found = ask(tmp_path, weight, decomposition)

    assert decomposition.calls == 2
    assert torch.equal(found.right, expected.right)
    assert path.read_bytes() == whole
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path}: cannot be read" in caplog.text


@pytest.mark.parametrize("sides", [{"left": (6, 3)}, {"left": (6, 3), "right": (10, 2)}])
def test_a_file_that_holds_something_else_is_computed_again(
    tmp_path: Path,
    decomposition: CountedDecomposition,
    caplog: pytest.LogCaptureFixture,
    sides: dict[str, tuple[int, int]],
) -> None:
    weight = make_weight()
    expected = ask(tmp_path, weight, decomposition)
    save_file({name: torch.zeros(shape) for name, shape in sides.items()}, only_file(tmp_path))

    found = ask(tmp_path, weight, decomposition)

    assert torch.equal(found.right, expected.right)
    assert "decomposing again" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning_and_not_the_run(
    tmp_path: Path, decomposition: CountedDecomposition, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file")

    found = ask(in_the_way, make_weight(), decomposition)

    assert torch.equal(found.left, ask(tmp_path / "elsewhere", make_weight(), decomposition).left)
    assert "cannot be written" in caplog.text
    assert "the next run decomposes again" in caplog.text
