"""The memory that a version of a model carries beside its weights, as a value and as a file.

For every group of weights that share an input it holds the leading eigenvectors and eigenvalues of a sum of
covariances ``E[x x^T]`` of that input, one of trace 1 for every task that was learnt. No data can be read from it but
what the directions tell. It is one safetensors file: tensors ``<number>.directions`` and ``<number>.eigenvalues``, and
a header in JSON that says which weights each group has.

The idea is Gradient Projection Memory, Saha et al. 2021, arXiv:2103.09762, which keeps bases; eigenvalues are kept
here so that memories can be added and a direction's weight in all tasks together be known.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from osft.content_cache import content_key
from osft.errors import ConfigError, MissingPathError, TrainingError, one_line
from osft.workspace import replace_directory

logger = logging.getLogger(__name__)

SCHEMA = "osft.subspace-memory/v1"
MEMORY_NAME = "memory.safetensors"
HEADER_KEY = "osft"
# GPM keeps 97% to 99% of a task's trace; what is left lies in very many directions.
NEEDED_SHARE = 0.99

STORED_TYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
"""What safetensors calls the types of the two kinds of tensors."""

ReadTensor = Callable[[Any, str], Tensor]
"""Takes an open safetensors file and the name of a tensor."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupMemory:
    """What is remembered of one input and of the weights that it is multiplied with."""

    targets: tuple[str, ...]
    """Names of the weights, as :attr:`osft.subspace.targets.Target.name`."""

    directions: Tensor
    """``[inputs, rank]``, bfloat16, in the host's memory; orthonormal to rounding, the most used first."""

    eigenvalues: Tensor
    """``[rank]``, float32: how much the tasks together use each direction; one task's add up to 1."""

    residual: float
    """What lies outside of the directions: together with the eigenvalues it makes the trace."""

    needed: tuple[int, ...]
    """How many directions made :data:`NEEDED_SHARE` of all that was known after each task, the oldest first."""

    @property
    def inputs(self) -> int:
        """Size of the input."""
        return self.directions.shape[0]

    @property
    def rank(self) -> int:
        """How many directions are kept."""
        return self.directions.shape[1]

    @property
    def trace(self) -> float:
        """How many tasks went in."""
        return float(self.eigenvalues.sum(dtype=torch.float64)) + self.residual

    @property
    def size_bytes(self) -> int:
        """What its tensors take on disk."""
        return self.directions.nbytes + self.eigenvalues.nbytes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SubspaceMemory:
    """What is remembered of everything that a model has learnt."""

    groups: tuple[GroupMemory, ...]
    """In the order of the model; no weight is in two of them."""

    tasks: int
    """How many covariances were added up, that of the base among them if it was measured."""

    tokens: int
    """Tokens over which all of them were measured."""

    free_mean_squares: Mapping[str, float] = field(default_factory=dict)
    """Of each weight, the mean square of what was free in it at the first link, for the scale of its updates. Taken
    anew it would hold the updates of all links before, and a learning rate would move the weight ever farther."""

    @property
    def size_bytes(self) -> int:
        """What its tensors take on disk."""
        return sum(group.size_bytes for group in self.groups)

    def group_of(self, target: str) -> GroupMemory | None:
        """Return the group of a weight; ``None`` if the memory does not know it."""
        return next((group for group in self.groups if target in group.targets), None)

    def require_fits(self, inputs: Mapping[str, int], where: Path | str) -> None:
        """Refuse the memory of another model.

        Args:
            inputs: size of the inputs of each weight of the model, by its name.
            where: names the memory in the message.

        Raises:
            ConfigError: if a weight of the memory has other inputs there, or none of its weights is known.
        """
        for group in self.groups:
            for target in group.targets:
                if inputs.get(target, group.inputs) != group.inputs:
                    raise ConfigError(
                        f"{where}: remembers {group.inputs} inputs of {target}, but the model to train has "
                        f"{inputs[target]}. Give the memory of this model's own parent."
                    )
        known = {target for group in self.groups for target in group.targets}
        if not known & inputs.keys():
            raise ConfigError(
                f"{where}: remembers none of the weights to train, such as {next(iter(inputs), 'any')}. "
                "Give the memory of this model's own parent."
            )
        if unknown := sorted(inputs.keys() - known):
            logger.warning(
                "%s: does not know %d of %d weights, such as %s; of these the weights' own directions are protected",
                where, len(unknown), len(inputs), unknown[0],
            )  # fmt: skip

    def save(self, folder: Path | str) -> None:
        """Write the memory to ``folder``, which appears when it is whole, replacing what is there.

        Raises:
            TrainingError: if it cannot be written.
        """
        target = Path(folder)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _write(self, partial / MEMORY_NAME)
            replace_directory(partial, target)
        except (OSError, SafetensorError) as error:
            # A part of it on a volume that is full would keep it full.
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"{target}: the memory cannot be saved ({one_line(error)}). Make room there."
            ) from error

    @classmethod
    def load(cls, folder: Path | str) -> "SubspaceMemory":
        """Read the memory in ``folder``.

        Raises:
            MissingPathError: if there is none.
            ConfigError: if the file is damaged, or of another version of this library.
        """
        return _load(folder, lambda file, name: file.get_tensor(name))

    @classmethod
    def load_header(cls, folder: Path | str) -> "SubspaceMemory":
        """Read all but the numbers: the tensors are on torch's ``meta`` device, where they have a shape and no bytes.

        Raises:
            MissingPathError, ConfigError: as :meth:`load` does.
        """
        return _load(folder, _without_numbers)


def memory_file(folder: Path | str) -> Path:
    """Return the file of the memory in ``folder``.

    Raises:
        MissingPathError: if there is none.
    """
    path = Path(folder) / MEMORY_NAME
    if not path.is_file():
        raise MissingPathError(f"{folder}: holds no subspace memory ({MEMORY_NAME}). Give the folder of one.")
    return path


def _load(folder: Path | str, read_tensor: ReadTensor) -> SubspaceMemory:
    path = memory_file(folder)
    try:
        memory, layout = _read(path, read_tensor)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)}). Give an undamaged copy.") from error
    if content_key(_layout(memory)) != layout:
        raise ConfigError(f"{path}: its tensors are not those that its header names. Give an undamaged copy.")
    return memory


def _without_numbers(file: Any, name: str) -> Tensor:
    stored = file.get_slice(name)
    return torch.empty(stored.get_shape(), dtype=STORED_TYPES[stored.get_dtype()], device="meta")


def _read(path: Path, read_tensor: ReadTensor) -> tuple[SubspaceMemory, str]:
    """Return the memory in a file, and the hash of names and shapes that it was written with."""
    with safe_open(path, framework="pt") as file:
        header = orjson.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
        if header.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {header.get('schema')!r}, not '{SCHEMA}'")
        groups = tuple(
            GroupMemory(
                targets=tuple(group["targets"]),
                directions=read_tensor(file, f"{number}.directions"),
                eigenvalues=read_tensor(file, f"{number}.eigenvalues"),
                residual=group["residual"],
                needed=tuple(group["needed"]),
            )
            for number, group in enumerate(header["groups"])
        )
    memory = SubspaceMemory(
        groups=groups,
        tasks=header["tasks"],
        tokens=header["tokens"],
        free_mean_squares=header["free_mean_squares"],
    )
    return memory, header["layout"]


def _write(memory: SubspaceMemory, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for number, group in enumerate(memory.groups):
        tensors[f"{number}.directions"] = group.directions.contiguous()
        tensors[f"{number}.eigenvalues"] = group.eigenvalues.contiguous()
    header = {
        "schema": SCHEMA,
        "tasks": memory.tasks,
        "tokens": memory.tokens,
        "free_mean_squares": memory.free_mean_squares,
        "groups": [
            {"targets": group.targets, "residual": group.residual, "needed": group.needed} for group in memory.groups
        ],
        "layout": content_key(_layout(memory)),
    }
    save_file(tensors, path, metadata={HEADER_KEY: orjson.dumps(header).decode()})
    # A pod under another user id of the same group must read it.
    path.chmod(0o664)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _layout(memory: SubspaceMemory) -> dict[str, Any]:
    """Return names and shapes of everything, as JSON."""
    shapes = [
        [list(group.targets), list(group.directions.shape), list(group.eigenvalues.shape)] for group in memory.groups
    ]
    return {"groups": shapes}
