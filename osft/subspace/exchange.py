"""The decompositions of a model, spread over the processes of a run and exchanged once.

Each process decomposes its share of the matrices. While the weights are attached, one after the other and in the same
order everywhere, the owner of a matrix hands what it found to all others. So no two processes ever hold different
bases of one weight: where singular values are equal a basis depends on the machine, and a sum of gradients in
different bases would mean nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from osft.subspace.attach import Source
from osft.subspace.decomposition import ProtectedSubspace, keeps_free_basis, orthonormal_complement
from osft.subspace.targets import Target, target_parameter


def gather(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that lies spread over the processes, all of which must call this; or itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def find_owners(model: PreTrainedModel, targets: Sequence[Target], world_size: int) -> dict[str, int]:
    """Return which process decomposes each matrix, by its name, in the order in which they do.

    Matrices in the order of their size, so that what is decomposed at the same time takes about as long; then the
    experts of each stack, whose names end in their number.
    """
    weights = {target.name: target_parameter(model, target) for target in targets}
    matrices = sorted((name for name, weight in weights.items() if weight.ndim == 2), key=lambda n: -weights[n].numel())
    owners = {name: number % world_size for number, name in enumerate(matrices)}
    for name, weight in weights.items():
        if weight.ndim == 3:
            owners |= {f"{name}[{expert}]": expert % world_size for expert in range(len(weight))}
    return owners


def spread(
    source: Source,
    model: PreTrainedModel,
    targets: Sequence[Target],
    entered: Callable[[str], None] = lambda _: None,
) -> Source:
    """Ask ``source`` for this process's share of the matrices, and return a source that hands out everybody's.

    Every process must call this, and then the result for every matrix, in the same order.

    Args:
        source: says what is protected of a matrix.
        model: its weights may be spread over the processes; one of them for each process is gathered at a time.
        targets: the weights whose matrices are decomposed.
        entered: told in every process, in one order, which matrices are decomposed next, at most one by each process.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    owners = find_owners(model, targets, world_size)
    weights = {target.name: target_parameter(model, target).detach() for target in targets}
    matrices = [name for name in owners if name in weights]
    own: dict[str, _Part] = {}
    for start in range(0, len(matrices), world_size):
        mine = None
        entered(f"decomposing weight {start + 1} of {len(matrices)}")
        for name in matrices[start : start + world_size]:
            whole = gather(weights[name])
            if owners[name] == rank:
                mine = name, whole
        if mine is not None:
            own[mine[0]] = _Part.of(source(*mine), mine[1].dtype)
    for name in (name for name, weight in weights.items() if weight.ndim == 3):
        for expert, matrix in enumerate(gather(weights[name])):
            entered(f"decomposing {name}[{expert}]")
            if owners[f"{name}[{expert}]"] == rank:
                own[f"{name}[{expert}]"] = _Part.of(source(f"{name}[{expert}]", matrix), matrix.dtype)
    return _Exchange(own, owners)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """One side of what is protected, in the form that :class:`osft.subspace.parametrization.FreeSide` keeps."""

    protected_rank: int
    is_free_basis: bool
    basis: Tensor
    """In the host's memory, until it is used."""

    @classmethod
    def of(cls, protected: Tensor, free: Tensor | None, dtype: torch.dtype) -> "_Side":
        """Choose the smaller form; a basis of what is free is made once, by the owner."""
        size, protected_rank = protected.shape
        is_free_basis = keeps_free_basis(size, protected_rank)
        basis = protected
        if is_free_basis:
            basis = orthonormal_complement(protected) if free is None else free
        return cls(protected_rank=protected_rank, is_free_basis=is_free_basis, basis=basis.to(dtype).cpu())

    def restored(self) -> tuple[Tensor, Tensor | None]:
        """Return protected directions and free basis; the form that is not kept has a shape and one value."""
        if not self.is_free_basis:
            return self.basis, None
        return self.basis.new_zeros(()).expand(len(self.basis), self.protected_rank), self.basis


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What is protected of one matrix, as it waits and travels."""

    left: _Side
    right: _Side

    @classmethod
    def of(cls, protected: ProtectedSubspace, dtype: torch.dtype) -> "_Part":
        """Take from ``protected`` what will be used, in the dtype of the weight."""
        return cls(
            left=_Side.of(protected.left, protected.free_left, dtype),
            right=_Side.of(protected.right, protected.free_right, dtype),
        )


class _Exchange:
    """Gives every process what the owner of a matrix found."""

    def __init__(self, own: dict[str, _Part], owners: Mapping[str, int]) -> None:
        self._own = own
        self._owners = owners

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        owner, part = self._owners[name], self._own.pop(name, None)
        left = _hand_out(part.left if part else None, owner, weight)
        right = _hand_out(part.right if part else None, owner, weight)
        (protected_left, free_left), (protected_right, free_right) = left.restored(), right.restored()
        return ProtectedSubspace(left=protected_left, right=protected_right, free_left=free_left, free_right=free_right)


def _hand_out(side: _Side | None, owner: int, weight: Tensor) -> _Side:
    """Return the owner's ``side`` in every process, on the device of ``weight``."""
    layout = [side and (side.protected_rank, side.is_free_basis, tuple(side.basis.shape))]
    dist.broadcast_object_list(layout, src=owner, device=weight.device)
    protected_rank, is_free_basis, shape = layout[0] or (0, False, (0, 0))
    basis = weight.new_empty(shape) if side is None else side.basis.to(weight.device).contiguous()
    dist.broadcast(basis, src=owner)
    return _Side(protected_rank=protected_rank, is_free_basis=is_free_basis, basis=basis)
