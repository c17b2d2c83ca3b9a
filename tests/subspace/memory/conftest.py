"""Memories and covariances made by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from osft.subspace.memory.memory import GroupMemory, SubspaceMemory
from osft.subspace.memory.merging import add_covariance


@pytest.fixture
def covariance() -> Callable[..., Tensor]:
    """Return a function that makes the covariance of random inputs, some used much more than others."""

    def make(size: int, seed: int, tokens: int = 50) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        spread = torch.logspace(0, -1.5, size)
        rotation = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
        inputs = torch.randn(tokens, size, generator=generator) * spread @ rotation
        return inputs.T @ inputs / tokens

    return make


@pytest.fixture
def memory(covariance: Callable[..., Tensor]) -> SubspaceMemory:
    """A memory of one task, of two groups."""
    groups = {("a.q", "a.k"): 12, ("a.o",): 20}
    return SubspaceMemory(
        groups=tuple(add_covariance(targets, covariance(size, size), None) for targets, size in groups.items()),
        tasks=1,
        tokens=50,
    )


@pytest.fixture
def group_of() -> Callable[..., GroupMemory]:
    """Return a function that makes a group which knows given directions ``[inputs, rank]`` alone."""

    def make(directions: Tensor, eigenvalues: list[float], needed: tuple[int, ...] = (1,)) -> GroupMemory:
        return GroupMemory(
            targets=("q",),
            directions=directions.to(torch.bfloat16),
            eigenvalues=torch.tensor(eigenvalues),
            residual=0.0,
            needed=needed,
        )

    return make
