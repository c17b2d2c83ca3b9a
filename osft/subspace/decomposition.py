"""Which directions of a weight are protected: the leading ones of its singular value decomposition.

What is protected is a value, :class:`ProtectedSubspace`, so that other sources than the weight's own SVD can
fill it; :mod:`osft.subspace.parametrization` works for all of them.

Source: Nayak et al. 2025, arXiv:2504.07097, section 3: the large singular values hold what the model knows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtectedSubspace:
    """Directions of one weight ``[rows, columns]`` that no update may touch.

    An update ``D`` is allowed when ``left^T D = 0`` and ``D right = 0``.
    """

    left: Tensor
    """``[rows, protected_left]``, orthonormal columns; no columns: nothing is protected on the output side."""

    right: Tensor
    """``[columns, protected_right]``, orthonormal columns; no columns: nothing on the input side."""


def frozen_rank(rows: int, columns: int, unfreeze_rank_ratio: float) -> int:
    """Return how many singular directions of a ``[rows, columns]`` weight stay fixed.

    ``min(floor(R (1 - rho)), R - 1)`` with ``R = min(rows, columns)``: at least one direction is free for any
    ``rho`` above 0. At ``rho = 0`` all ``R`` are fixed and the weight is not trained.
    """
    full_rank = min(rows, columns)
    if unfreeze_rank_ratio == 0:
        return full_rank
    return min(math.floor(full_rank * (1 - unfreeze_rank_ratio)), full_rank - 1)


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
        with ``k = frozen_rank(...)``.
    """
    rows, columns = weight.shape
    rank = frozen_rank(rows, columns, unfreeze_rank_ratio)
    exact = weight.to(torch.float64)
    wide = exact if rows <= columns else exact.T
    # eigh sorts ascending: the last columns belong to the largest singular values.
    eigenvectors = torch.linalg.eigh(wide @ wide.T).eigenvectors
    short_side = eigenvectors.flip(1)[:, :rank]
    # wide^T u = sigma v. QR instead of a division by sigma: it stays orthonormal where sigma is tiny or zero.
    long_side = torch.linalg.qr(wide.T @ short_side).Q
    left, right = (short_side, long_side) if rows <= columns else (long_side, short_side)
    return ProtectedSubspace(left=left, right=right)
