"""Which directions of a weight are protected: the leading ones of its singular value decomposition.

What is protected is a value, :class:`ProtectedSubspace`, so that other sources than the weight's own SVD can
fill it; :mod:`osft.subspace.parametrization` works for all of them.

Source: Nayak et al. 2025, arXiv:2504.07097, section 3: the large singular values hold what the model knows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_RELATIVE_SINGULAR_VALUE = 1e-4
COMPLEMENT_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtectedSubspace:
    """Directions of one weight ``[rows, columns]`` that no update may touch.

    An update ``D`` is allowed when ``left^T D = 0`` and ``D right = 0``.
    """

    left: Tensor
    """``[rows, protected_left]``, orthonormal columns; no columns: nothing is protected on the output side."""

    right: Tensor
    """``[columns, protected_right]``, orthonormal columns; no columns: nothing on the input side."""

    free_left: Tensor | None = None
    """``[rows, rows - protected_left]``, an orthonormal basis of all that is not protected, where it is at hand."""

    free_right: Tensor | None = None
    """The same of the input side."""


def keeps_free_basis(size: int, protected_rank: int) -> bool:
    """Return whether a side is kept as a basis of what is free, the smaller form, and not as protected directions."""
    return size - protected_rank <= protected_rank


def frozen_rank(rows: int, columns: int, unfreeze_rank_ratio: float) -> int:
    """Return how many singular directions of a ``[rows, columns]`` weight stay fixed.

    ``min(floor(R (1 - rho)), R - 1)`` with ``R = min(rows, columns)``: at least one direction is free for any
    ``rho`` above 0. At ``rho = 0`` all ``R`` are fixed and the weight is not trained. The product is rounded to nine
    decimals first: 2560 (1 - 0.9) is 256, though not in binary.
    """
    full_rank = min(rows, columns)
    if unfreeze_rank_ratio == 0:
        return full_rank
    return min(math.floor(round(full_rank * (1 - unfreeze_rank_ratio), 9)), full_rank - 1)


@torch.no_grad()
def protect_leading_directions(weight: Tensor, unfreeze_rank_ratio: float) -> ProtectedSubspace:
    """Return the leading singular directions of ``weight``, left and right.

    The eigenvectors of the smaller Gram matrix take a fraction of the time of a full SVD. It squares the singular
    values, so it is done in float64, whose 16 digits leave 8 after the squaring.

    Args:
        weight: ``[rows, columns]``, any floating dtype; not changed.
        unfreeze_rank_ratio: share of directions left free, 0 to 1.

    Returns:
        ``left`` ``[rows, k]`` and ``right`` ``[columns, k]``, float64, on the weight's device,
        with ``k = frozen_rank(...)``; and the free bases of the sides that have fewer free than protected directions.
    """
    rows, columns = weight.shape
    rank = frozen_rank(rows, columns, unfreeze_rank_ratio)
    exact = weight.to(torch.float64)
    wide = exact if rows <= columns else exact.mT
    # eigh sorts ascending: the last columns belong to the largest singular values.
    eigenvectors = torch.linalg.eigh(wide @ wide.mT).eigenvectors
    short_free, short_side = eigenvectors.split([len(wide) - rank, rank], dim=1)
    short_side = short_side.flip(1)
    long_side = _normalize(wide.mT @ short_side)
    # The smaller of the two forms is the one that is of use.
    short_free = short_free if short_free.shape[1] <= rank else None
    long_free = orthonormal_complement(long_side) if max(rows, columns) - rank <= rank else None
    if rows <= columns:
        return ProtectedSubspace(left=short_side, right=long_side, free_left=short_free, free_right=long_free)
    return ProtectedSubspace(left=long_side, right=short_side, free_left=long_free, free_right=short_free)


def _normalize(scaled: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns ``sigma_i v_i`` ``[size, rank]``, float64, largest first."""
    norms = torch.linalg.vector_norm(scaled, dim=0)
    # Divided by sigma, columns are orthogonal to 1e-16 (sigma_1 / sigma_k)^2. A QR takes longer, and holds for all.
    if len(norms) == 0 or norms[-1] > MIN_RELATIVE_SINGULAR_VALUE * norms[0]:
        return scaled / norms
    return torch.linalg.qr(scaled).Q


@torch.no_grad()
def orthonormal_complement(directions: Tensor) -> Tensor:
    """Return a basis of all that is orthogonal to ``directions``.

    Random vectors without their part in ``directions``, orthonormalized: a fraction of the time of a complete QR.

    Args:
        directions: ``[..., size, rank]``, orthonormal columns.

    Returns:
        ``[..., size, size - rank]``, float64, orthonormal columns, the same for the same input.
    """
    size, rank = directions.shape[-2:]
    directions = directions.to(torch.float64)
    generator = torch.Generator().manual_seed(COMPLEMENT_SEED)
    shape = (*directions.shape[:-1], size - rank)
    vectors = torch.randn(shape, generator=generator, dtype=torch.float64).to(directions.device)
    # Random vectors can be nearly dependent, which magnifies what rounding left in the directions; once more ends it.
    for _ in range(2):
        vectors = torch.linalg.qr(vectors - directions @ (directions.mT @ vectors)).Q
    return vectors
