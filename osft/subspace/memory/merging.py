"""Adding what was learnt to a memory, and cutting a memory to its size.

A memory is a sum of covariances, each scaled to trace 1 so that every task counts the same whatever the size of its
activations. Of the sum only the leading eigenpairs are kept, and what is not is added up in a number, the residual.
To add a task with covariance ``C`` the sum is put together again:

    S = V diag(l) V^T + C / trace(C)

The residual takes no part: nobody knows its directions, and an even spread would make some up.

What a memory of all groups keeps of each is chosen by one share of the trace for all, as large as the size allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osft.subspace.memory.memory import NEEDED_SHARE, GroupMemory

# More of the trace is not kept: the rest is spread over so many directions that no ratio has room for them.
MAX_SHARE = 0.999
# Of all groups together, in a file beside the weights of an 8-billion-parameter model, which take 16e9.
LIMIT_BYTES = 2 * 10**9
# Halvings of the share: below 1e-9 of the trace.
BISECTION_STEPS = 30


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spectrum:
    """What decides how much of a group is kept."""

    inputs: int
    """Size of the input."""

    eigenvalues: Tensor
    """``[rank]``, float32, the largest first."""

    trace: float

    @classmethod
    def of(cls, group: GroupMemory) -> "Spectrum":
        """Return that of ``group``."""
        return cls(inputs=group.inputs, eigenvalues=group.eigenvalues, trace=group.trace)

    def size_of_share(self, share: float) -> int:
        """Return the bytes that directions and eigenvalues take which make ``share`` of the trace."""
        bytes_for_each = self.inputs * torch.bfloat16.itemsize + self.eigenvalues.itemsize
        return rank_of_share(self.eigenvalues, self.trace, share) * bytes_for_each


@torch.no_grad()
def add_covariance(targets: tuple[str, ...], covariance: Tensor, earlier: GroupMemory | None) -> GroupMemory:
    """Return what is remembered of a group once a task is added; :data:`MAX_SHARE` of the trace is kept.

    Args:
        targets: names of the weights.
        covariance: ``[inputs, inputs]`` of the task, symmetric, of any scale; used up.
        earlier: what is remembered so far, if anything is.
    """
    trace = covariance.trace()
    total = covariance.to(torch.float64)
    if trace > 0:
        total /= trace.to(torch.float64)
    if earlier is not None:
        total += reconstruct(earlier, total.device)
    # eigh sorts ascending. The smallest ones of a singular matrix are zero to rounding, on either side.
    eigenvalues, vectors = torch.linalg.eigh(total)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    known = float(eigenvalues.sum())
    rank = rank_of_share(eigenvalues, known, MAX_SHARE)
    return GroupMemory(
        targets=targets,
        directions=vectors[:, :rank].to(torch.bfloat16).cpu().contiguous(),
        eigenvalues=eigenvalues[:rank].to(torch.float32).cpu(),
        residual=float(eigenvalues[rank:].sum()) + (earlier.residual if earlier else 0.0),
        needed=(*(earlier.needed if earlier else ()), rank_of_share(eigenvalues, known, NEEDED_SHARE)),
    )


def reconstruct(group: GroupMemory, device: torch.device) -> Tensor:
    """Return the sum of covariances ``[inputs, inputs]``, float64, as far as it is known."""
    directions = orthonormal(group.directions.to(device))
    return (directions * group.eigenvalues.to(device, torch.float64)) @ directions.mT


def orthonormal(directions: Tensor) -> Tensor:
    """Return float64 directions that are orthonormal again after rounding; the first ``n`` span what they spanned."""
    exact = directions.to(torch.float64)
    factors = torch.linalg.qr(exact)
    # A QR may turn a direction round, which no use of it would notice, but a reader would.
    return factors.Q * torch.where(factors.R.diagonal() < 0, -1.0, 1.0).to(exact)


def largest_share(spectra: Sequence[Spectrum], limit_bytes: int = LIMIT_BYTES) -> float:
    """Return the largest share of its trace that can be kept of every group within ``limit_bytes`` together."""
    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        fits = sum(spectrum.size_of_share(middle) for spectrum in spectra) <= limit_bytes
        low, high = (middle, high) if fits else (low, middle)
    return low


def cut(group: GroupMemory, share: float) -> GroupMemory:
    """Return a group with the fewest leading directions that make ``share`` of its trace, or with all that it has."""
    rank = rank_of_share(group.eigenvalues, group.trace, share)
    if rank == group.rank:
        return group
    return GroupMemory(
        targets=group.targets,
        # Copies: columns cut from a larger matrix would keep all of it alive.
        directions=group.directions[:, :rank].clone(memory_format=torch.contiguous_format),
        eigenvalues=group.eigenvalues[:rank].clone(),
        residual=group.residual + float(group.eigenvalues[rank:].sum(dtype=torch.float64)),
        needed=group.needed,
    )


def rank_of_share(eigenvalues: Tensor, trace: float, share: float) -> int:
    """Return how many of ``eigenvalues``, the largest first, make ``share`` of ``trace``; all where they do not."""
    reached = torch.cumsum(eigenvalues.to(torch.float64), dim=0) >= share * trace
    return min(len(eigenvalues), int((~reached).sum()) + 1)
