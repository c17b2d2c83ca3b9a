"""A memory as a file: what is written is read, and nothing else is."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from osft.errors import ConfigError, MissingPathError, TrainingError
from osft.subspace.memory.memory import MEMORY_NAME, SubspaceMemory


def test_a_memory_is_read_as_it_was_written(memory: SubspaceMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory")

    again = SubspaceMemory.load(tmp_path / "memory")

    assert (again.tasks, again.tokens) == (1, 50)
    for one, other in zip(memory.groups, again.groups, strict=True):
        assert (one.targets, one.residual, one.needed) == (other.targets, other.residual, other.needed)
        assert torch.equal(one.directions, other.directions)
        assert torch.equal(one.eigenvalues, other.eigenvalues)


def test_a_header_tells_all_but_the_numbers_which_are_not_read(memory: SubspaceMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory")

    header = SubspaceMemory.load_header(tmp_path / "memory")

    assert (header.tasks, header.tokens, header.size_bytes) == (memory.tasks, memory.tokens, memory.size_bytes)
    for one, other in zip(memory.groups, header.groups, strict=True):
        assert (one.targets, one.inputs, one.rank, one.needed) == (
            other.targets,
            other.inputs,
            other.rank,
            other.needed,
        )
        assert other.directions.is_meta
        assert other.eigenvalues.is_meta


def test_the_size_that_a_memory_tells_is_that_of_its_tensors_on_disk(memory: SubspaceMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory")

    size = (tmp_path / "memory" / MEMORY_NAME).stat().st_size

    # The header of so small a memory: names, shapes and offsets.
    assert 0 < size - memory.size_bytes < 1000


def test_saving_replaces_an_older_memory_and_leaves_nothing_else(memory: SubspaceMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory")
    later = SubspaceMemory(groups=memory.groups[:1], tasks=7, tokens=9)

    later.save(tmp_path / "memory")

    assert SubspaceMemory.load(tmp_path / "memory").tasks == 7
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_a_folder_without_a_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"holds no subspace memory \(memory\.safetensors\)"):
        SubspaceMemory.load(tmp_path)


def test_a_damaged_file_is_an_error(memory: SubspaceMemory, tmp_path: Path) -> None:
    memory.save(tmp_path)
    file = tmp_path / MEMORY_NAME
    file.write_bytes(file.read_bytes()[:-10])

    for load in (SubspaceMemory.load, SubspaceMemory.load_header):
        with pytest.raises(ConfigError, match=r"memory\.safetensors: cannot be read .*Give an undamaged copy"):
            load(tmp_path)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / MEMORY_NAME)

    with pytest.raises(ConfigError, match=r"its schema is None, not 'osft\.subspace-memory/v1'"):
        SubspaceMemory.load(tmp_path)


def test_tensors_of_other_shapes_than_were_written_are_an_error(memory: SubspaceMemory, tmp_path: Path) -> None:
    from safetensors import safe_open

    memory.save(tmp_path)
    with safe_open(tmp_path / MEMORY_NAME, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(tmp_path / MEMORY_NAME)
    tensors["0.directions"] = tensors["0.directions"][:, :1].contiguous()
    save_file(tensors, tmp_path / MEMORY_NAME, metadata=header)

    with pytest.raises(ConfigError, match="its tensors are not those that its header names"):
        SubspaceMemory.load(tmp_path)


def test_a_memory_that_cannot_be_written_is_an_error_that_names_the_place(
    memory: SubspaceMemory, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TrainingError, match=r"file/memory: the memory cannot be saved"):
        memory.save(tmp_path / "file" / "memory")


def test_the_memory_of_another_shape_is_refused_by_the_name_of_the_layer(memory: SubspaceMemory) -> None:
    with pytest.raises(ConfigError, match=r"here: remembers 20 inputs of a\.o, but the model to train has 24"):
        memory.require_fits({"a.q": 12, "a.k": 12, "a.o": 24}, "here")


def test_the_memory_of_other_layers_is_refused(memory: SubspaceMemory) -> None:
    with pytest.raises(ConfigError, match=r"here: remembers none of the weights to train, such as b\.q"):
        memory.require_fits({"b.q": 12}, "here")


def test_weights_that_a_memory_does_not_know_are_told(memory: SubspaceMemory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    memory.require_fits({"a.q": 12, "a.up": 12}, "here")

    assert "here: does not know 1 of 2 weights, such as a.up" in caplog.text
    assert memory.group_of("a.up") is None
