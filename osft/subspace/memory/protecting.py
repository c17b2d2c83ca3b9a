"""What of a weight a memory protects: the one place that says how it shares the room with the weight's directions.

The memory's directions come first, the most used ones of all tasks together. What they leave of the room goes to the
weight's own: the leading right singular directions of what the weight does outside of the memory. Nothing is
protected on the output side, as in :func:`osft.subspace.inputs.protect_input_directions`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from osft.subspace.decomposition import ProtectedSubspace, frozen_rank
from osft.subspace.memory.memory import GroupMemory
from osft.subspace.memory.merging import orthonormal


@torch.no_grad()
def protect_memory(
    weight: Tensor, group: GroupMemory, unfreeze_rank_ratio: float, *, inputs_are_columns: bool
) -> ProtectedSubspace:
    """Return the directions of a weight's inputs that a memory, and then the weight itself, uses most.

    Of ``m`` inputs ``frozen_rank(m, m, rho)`` directions are protected. Where memory and weight together use fewer,
    directions that neither uses make up the number.

    Args:
        weight: ``[rows, columns]``, any floating dtype; not changed.
        group: what is remembered of its inputs.
        unfreeze_rank_ratio: share of the directions left free, 0 to 1.
        inputs_are_columns: ``False`` where the weight is stored ``[inputs, outputs]``; then ``left`` is filled.

    Returns:
        Orthonormal directions of the inputs in the weight's dtype.
    """
    room = frozen_rank(group.inputs, group.inputs, unfreeze_rank_ratio)
    directions = orthonormal(group.directions[:, :room].to(weight.device))
    if directions.shape[1] < room:
        outputs_by_inputs = (weight if inputs_are_columns else weight.mT).to(torch.float64)
        own = _leading_outside(outputs_by_inputs, directions, room - directions.shape[1])
        # A QR gives orthonormal columns also where the weight has no more directions and its columns are zero.
        directions = torch.linalg.qr(torch.cat([directions, own], dim=1)).Q
    directions = directions.to(weight.dtype).contiguous()
    nothing = directions.new_zeros(math.prod(weight.shape) // group.inputs, 0)
    if inputs_are_columns:
        return ProtectedSubspace(left=nothing, right=directions)
    return ProtectedSubspace(left=directions, right=nothing)


def _leading_outside(weight: Tensor, directions: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading right singular directions of a weight outside of others, of any length.

    Args:
        weight: ``[outputs, inputs]``, float64.
        directions: ``[inputs, rank]``, orthonormal.
        count: at most ``inputs - rank``; beyond what the weight has, columns are zero.
    """
    rest = weight - (weight @ directions) @ directions.mT
    # As in protect_leading_directions: the eigenvectors of the smaller Gram matrix, the largest last.
    if len(rest) <= rest.shape[1]:
        own = rest.mT @ torch.linalg.eigh(rest @ rest.mT).eigenvectors.flip(1)[:, :count]
    else:
        own = torch.linalg.eigh(rest.mT @ rest).eigenvectors.flip(1)[:, :count]
    return F.pad(own, (0, count - own.shape[1]))
