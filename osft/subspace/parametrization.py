"""What of a weight may move: a linear layer whose update is orthogonal to the protected directions, always.

The allowed updates form the linear set ``{ P X Q }`` with ``P = I - L L^T`` and ``Q = I - R R^T``, where ``L`` and
``R`` are the protected directions of the two sides. The layer trains coordinates of that set, so no step of any
optimizer can leave it and nothing is projected after a step:

    W = W0 + expand_left( core ) expand_right^T

Each side is stored in the smaller of two forms: a basis of what is free, or the protected directions with the
projection applied. The merged ``W`` is kept beside ``W0``: forward and the gradient of the input are one dense
matrix product each, and before the first step ``W`` is ``W0`` bit for bit.

Source: Nayak et al. 2025, arXiv:2504.07097; the set is what the paper's U_low, S_low, V_low can reach, and the null
space of the longer side with it, without the redundancy of three factors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osft.subspace.decomposition import ProtectedSubspace


class FreeSide(nn.Module):
    """The orthogonal complement of the protected directions on one side of a weight.

    Coordinates of the complement are rows of the tensors below. With few free directions they are coefficients of
    a basis; with many, they are plain vectors of which only the part outside the protected directions counts.
    """

    basis: Tensor

    def __init__(self, protected: Tensor, dtype: torch.dtype) -> None:
        """Choose the smaller form for ``protected`` ``[size, protected_rank]`` and keep it in ``dtype``."""
        super().__init__()
        size, protected_rank = protected.shape
        self.is_free_basis = size - protected_rank <= protected_rank
        basis = torch.linalg.qr(protected, mode="complete").Q[:, protected_rank:] if self.is_free_basis else protected
        self.coordinates = basis.shape[1] if self.is_free_basis else size
        # Contiguous: the columns cut from Q would keep the whole of Q alive.
        self.register_buffer("basis", basis.to(dtype).contiguous(), persistent=False)

    def expand(self, coordinates: Tensor) -> Tensor:
        """Map ``[self.coordinates, other]`` to ``[size, other]``, orthogonal to the protected directions."""
        return self.basis @ coordinates if self.is_free_basis else self.remove_protected(coordinates)

    def remove_protected(self, coordinates: Tensor) -> Tensor:
        """Take the protected part out of ``[self.coordinates, other]``; a free basis has none."""
        return coordinates if self.is_free_basis else coordinates - self.basis @ (self.basis.T @ coordinates)

    def coordinates_of(self, activations: Tensor) -> Tensor:
        """Map ``[tokens, size]`` to ``[tokens, self.coordinates]``; the protected part may still be in it."""
        return activations @ self.basis.to(activations.dtype) if self.is_free_basis else activations


class SubspaceLinear(nn.Module):
    """A linear layer ``[in_features] -> [out_features]`` whose weight moves in the free subspace only.

    ``core`` is the one trained parameter, zero at first. After it changed, :meth:`merge` must be called.
    """

    base_weight: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, protected: ProtectedSubspace) -> None:
        """Take over weight and bias of ``linear``, without a copy, and free what ``protected`` leaves."""
        super().__init__()
        # bf16 coordinates would lose small steps; a float64 model keeps its precision.
        precision = torch.promote_types(linear.weight.dtype, torch.float32)
        self.left = FreeSide(protected.left, precision)
        self.right = FreeSide(protected.right, precision)
        shape = (self.left.coordinates, self.right.coordinates)
        self.core = nn.Parameter(torch.zeros(shape, dtype=precision, device=linear.weight.device))
        self.register_buffer("base_weight", linear.weight.detach(), persistent=False)
        self.register_buffer("weight", linear.weight.detach().clone())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]`` with the merged weight."""
        return _SubspaceLinearFunction.apply(inputs, self.core, self)

    @torch.no_grad()
    def merge(self) -> None:
        """Write ``W0 + P X Q`` into ``weight``, computed in the precision of ``core`` and rounded once."""
        update = self.left.expand(self.right.expand(self.core.T).T)
        self.weight.copy_(self.base_weight.to(update.dtype) + update)


class _SubspaceLinearFunction(torch.autograd.Function):
    """``inputs W^T + b`` with the gradient of ``core`` in place of the weight's.

    ``dL/dcore = left^T (dY^T X) right``. Where a side has a free basis, its few coordinates are taken of the
    activations, so no gradient of the weight's full size is made; where it has a projection, the projection is
    applied to the finished gradient, which has fewer rows than there are tokens.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, core: Tensor, layer: SubspaceLinear) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.layer = layer
        return F.linear(inputs, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        (inputs,) = ctx.saved_tensors
        layer: SubspaceLinear = ctx.layer
        needs_inputs, needs_core, _ = ctx.needs_input_grad
        of_inputs = gradient @ layer.weight if needs_inputs else None
        of_core = _gradient_of_core(layer, gradient, inputs) if needs_core else None
        return of_inputs, of_core, None


def _gradient_of_core(layer: SubspaceLinear, gradient: Tensor, inputs: Tensor) -> Tensor:
    """Return ``[left.coordinates, right.coordinates]`` from ``[..., out_features]`` and ``[..., in_features]``."""
    gradient, inputs = gradient.reshape(-1, gradient.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
    raw = layer.left.coordinates_of(gradient).T @ layer.right.coordinates_of(inputs)
    raw = raw.to(layer.core.dtype)
    return layer.left.remove_protected(layer.right.remove_protected(raw.T).T)
