"""The decompositions of a model, spread over the processes of a run and exchanged once.

Each process decomposes its share of the matrices. While the weights are attached, one after the other and in the same
order everywhere, the owner of a matrix hands what it found to all others. So no two processes ever hold different
bases of one weight: where singular values are equal a basis depends on the machine, and a sum of gradients in
different bases would mean nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from osft.subspace.attach import Source
from osft.subspace.decomposition import ProtectedSubspace, orthonormal_complement
from osft.subspace.targets import Target, target_parameter


def gather(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that lies spread over the processes, all of which must call this; or itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def count_first_share(model: PreTrainedModel, targets: Sequence[Target], world_size: int) -> int:
    """Return how many matrices the first of ``world_size`` processes decomposes."""
    experts = [len(weight) for weight in (target_parameter(model, t) for t in targets) if weight.ndim == 3]
    return sum(math.ceil(count / world_size) for count in (len(targets) - len(experts), *experts))


def spread(source: Source, model: PreTrainedModel, targets: Sequence[Target]) -> Source:
    """Ask ``source`` for this process's share of the matrices, and return a source that hands out everybody's.

    Every process must call this, and then the result for every matrix, in the same order.

    Args:
        source: says what is protected of a matrix.
        model: its weights may be spread over the processes; one of them at a time is gathered.
        targets: the weights whose matrices are decomposed.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own: dict[str, ProtectedSubspace] = {}
    owners: dict[str, int] = {}
    weights = {target.name: target_parameter(model, target).detach() for target in targets}
    # In the order of their size: what is decomposed at the same time takes about as long.
    matrices = sorted((name for name, weight in weights.items() if weight.ndim == 2), key=lambda n: -weights[n].numel())
    for start in range(0, len(matrices), world_size):
        owned = dict(enumerate(matrices[start : start + world_size]))
        owners |= {name: owner for owner, name in owned.items()}
        gathered = {owner: _if(owner == rank, gather(weights[name])) for owner, name in owned.items()}
        if (weight := gathered.get(rank)) is not None:
            own[owned[rank]] = _on_host(source(owned[rank], weight))
    for name in (name for name, weight in weights.items() if weight.ndim == 3):
        for expert, matrix in enumerate(gather(weights[name])):
            owners[f"{name}[{expert}]"] = expert % world_size
            if expert % world_size == rank:
                own[f"{name}[{expert}]"] = _on_host(source(f"{name}[{expert}]", matrix))
    return _Exchange(own, owners)


def _if(wanted: bool, tensor: Tensor) -> Tensor | None:
    """Return ``tensor`` or let go of it."""
    return tensor if wanted else None


def _on_host(protected: ProtectedSubspace) -> ProtectedSubspace:
    """Return the directions, and the bases of what is free where they will be needed, in the host's memory."""
    tensors = {
        "left": protected.left,
        "right": protected.right,
        "free_left": _free_basis(protected.left, protected.free_left),
        "free_right": _free_basis(protected.right, protected.free_right),
    }
    return ProtectedSubspace(**{name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None})


def _free_basis(protected: Tensor, free: Tensor | None) -> Tensor | None:
    """Return the basis that :class:`osft.subspace.parametrization.FreeSide` will ask for, made once, by the owner."""
    size, protected_rank = protected.shape
    if size - protected_rank > protected_rank:
        return None
    return orthonormal_complement(protected).to(protected.dtype) if free is None else free


class _Exchange:
    """Gives every process what the owner of a matrix found."""

    def __init__(self, own: dict[str, ProtectedSubspace], owners: Mapping[str, int]) -> None:
        self._own = own
        self._owners = owners

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        owner = self._owners[name]
        own = _tensors(self._own.pop(name, None))
        layouts = [{key: (tensor.shape, tensor.dtype) for key, tensor in own.items()}]
        dist.broadcast_object_list(layouts, src=owner, device=weight.device)
        received = {}
        for key, (shape, dtype) in layouts[0].items():
            tensor = own[key] if key in own else torch.empty(shape, dtype=dtype)
            received[key] = tensor.to(weight.device).contiguous()
            dist.broadcast(received[key], src=owner)
        return ProtectedSubspace(**received)


def _tensors(protected: ProtectedSubspace | None) -> dict[str, Tensor]:
    """Return what ``protected`` has, by name."""
    values = {field.name: getattr(protected, field.name, None) for field in fields(ProtectedSubspace)}
    return {name: tensor for name, tensor in values.items() if tensor is not None}
