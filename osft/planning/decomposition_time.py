"""How long the decomposition of a model takes: its operations, over the rate of a small one done here and now.

Rough by nature: a library reaches another share of a processor's peak on a large matrix than on a small one, and the
largest part, the eigenvectors, is bound by memory for a third of its operations.
"""

import time
from collections.abc import Iterable

import torch

from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions
from osft.subspace.parametrization import SubspaceWeight

# A fraction of a second on a CPU core, and large enough to use what the device has.
PROBE_SIZE = 768
PROBE_RATIO = 0.25
# Tridiagonal form 4/3 n^3, its eigenvectors about as much by divide and conquer, and their way back 2 n^3; Golub and
# Van Loan, Matrix Computations, 4th edition, sections 8.3 and 8.4. The first half of the tridiagonal form runs at the
# memory's speed, which counts as four times its operations.
EIGH_OPERATIONS = 9


def estimate_seconds(matrices: Iterable[tuple[int, int]], unfreeze_rank_ratio: float, device: torch.device) -> float:
    """Return about how long it takes to decompose ``matrices``, ``(rows, columns)`` each, on ``device``."""
    operations = sum(count_operations(rows, columns, unfreeze_rank_ratio) for rows, columns in matrices)
    return operations / _measure_rate(device)


def count_operations(rows: int, columns: int, unfreeze_rank_ratio: float) -> float:
    """Return the floating-point operations of decomposing one ``[rows, columns]`` matrix and keeping what is free."""
    short, long = min(rows, columns), max(rows, columns)
    protected = frozen_rank(rows, columns, unfreeze_rank_ratio)
    gram = 2 * short**2 * long
    eigenvectors = EIGH_OPERATIONS * short**3
    long_side = 2 * short * long * protected
    return float(gram + eigenvectors + long_side + sum(_count_basis(size, protected) for size in (short, long)))


def _count_basis(size: int, protected: int) -> int:
    """Return the operations of a basis of what is free, where that is the smaller form."""
    free = size - protected
    if free > protected:
        return 0
    return 4 * size * protected * free + 4 * size * free**2


def _measure_rate(device: torch.device) -> float:
    """Return operations a second on ``device``, from one small decomposition after another that warms it up."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator).to(device)
    _decompose(weight[: PROBE_SIZE // 8, : PROBE_SIZE // 8])
    start = time.perf_counter()
    _decompose(weight)
    return count_operations(PROBE_SIZE, PROBE_SIZE, PROBE_RATIO) / (time.perf_counter() - start)


def _decompose(weight: torch.Tensor) -> ProtectedSubspace:
    protected = protect_leading_directions(weight, PROBE_RATIO)
    SubspaceWeight(weight, protected)
    if weight.is_cuda:
        torch.cuda.synchronize(weight.device)
    return protected
