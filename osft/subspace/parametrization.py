"""What of a weight may move: an update that is orthogonal to the protected directions, always.

The allowed updates form the linear set ``{ P X Q }`` with ``P = I - L L^T`` and ``Q = I - R R^T``, where ``L`` and
``R`` are the protected directions of the two sides. A weight trains coordinates of that set, so no step of any
optimizer can leave it:

    W = W0 + scale * expand_left( core ) expand_right^T

Each side is stored in the smaller of two forms: a basis of what is free, or the protected directions, which are then
projected out of gradient and core once a step. The merged ``W`` is kept, so forward and the gradient of the input
are one dense matrix product each, and before the first step ``W`` is ``W0`` bit for bit.

Everything works on one matrix ``[rows, columns]`` and on a stack ``[experts, rows, columns]`` alike.

Source: Nayak et al. 2025, arXiv:2504.07097; the set is what the paper's U_low, S_low, V_low can reach, and the null
space of the longer side with it, without the redundancy of three factors.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osft.subspace.decomposition import ProtectedSubspace, keeps_free_basis, orthonormal_complement

# 2/pi for the first step, a matrix of signs; nearer to 1 as the second moment averages. Chosen by measurement.
ALIGNED_SHARE = 0.8


class FreeSide(nn.Module):
    """The orthogonal complement of the protected directions on one side of a weight.

    Coordinates of the complement are rows of the tensors below. With few free directions they are coefficients of
    a basis; with many, they are plain vectors that :meth:`remove_protected` keeps in the complement.
    """

    basis: Tensor

    def __init__(self, protected: Tensor, free: Tensor | None, weight: Tensor, *, offload: bool = False) -> None:
        """Choose the smaller form and keep it as ``weight`` is kept.

        Args:
            protected: ``[..., size, protected_rank]``.
            free: a basis of the complement, ``[..., size, size - protected_rank]``; computed where it is not at hand.
            weight: of whose dtype and on whose device the form will be.
            offload: leave the protected form, which is needed once a step alone, in the host's memory.
        """
        super().__init__()
        size, protected_rank = protected.shape[-2:]
        self.free_rank = size - protected_rank
        self.is_free_basis = keeps_free_basis(size, protected_rank)
        basis = protected
        if self.is_free_basis:
            basis = orthonormal_complement(protected) if free is None else free
        self.coordinates = basis.shape[-1] if self.is_free_basis else size
        # Contiguous: columns cut from a larger matrix would keep all of it alive.
        basis = basis.to(weight.device, weight.dtype).contiguous()
        if offload and not self.is_free_basis:
            basis = to_host(basis)
        self.register_buffer("basis", basis, persistent=False)

    def expand(self, coordinates: Tensor) -> Tensor:
        """Map ``[..., self.coordinates, other]`` to ``[..., size, other]``."""
        return self.basis @ coordinates.to(self.basis.dtype) if self.is_free_basis else coordinates

    @torch.no_grad()
    def remove_protected(self, coordinates: Tensor) -> Tensor:
        """Take the protected part out of ``[..., self.coordinates, other]``; a free basis has none."""
        if self.is_free_basis or self.basis.shape[-1] == 0:
            return coordinates
        basis = self.basis.to(coordinates.device, non_blocking=True)
        # In the basis's dtype: in bfloat16 what is left of the protected part is 2^-9 of it, and goes the next time.
        protected_part = basis @ (basis.mT @ coordinates.to(basis.dtype))
        return coordinates - protected_part.to(coordinates.dtype)

    def coordinates_of(self, vectors: Tensor) -> Tensor:
        """Map ``[..., count, size]`` to ``[..., count, self.coordinates]``; the protected part may still be in it."""
        return vectors @ self.basis.to(vectors.dtype) if self.is_free_basis else vectors


class TrainedWeight(nn.Module):
    """A weight ``[..., rows, columns]`` that is trained through other parameters than its own values.

    In a step :meth:`project_gradient` follows the last backward pass, and :meth:`merge` the optimizer.
    """

    merged: Tensor
    """The weight as it is now, in the base weight's dtype."""

    def project_gradient(self) -> None:
        """Take the protected part out of the gradients."""
        raise NotImplementedError

    def merge(self) -> None:
        """Bring ``merged`` up to date with the parameters."""
        raise NotImplementedError


class SubspaceWeight(TrainedWeight):
    """A weight that moves in its free subspace only; ``core`` is the one trained parameter, zero at first."""

    base: Tensor
    free_mean_square: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, protected: ProtectedSubspace, *, offload: bool = False) -> None:
        """Take over ``weight`` without a copy and free what ``protected`` leaves.

        With ``offload`` what is needed once a step alone, the base weight and protected directions, lies in the
        host's memory.
        """
        super().__init__()
        weight = weight.detach()
        self.left = FreeSide(protected.left, protected.free_left, weight, offload=offload)
        self.right = FreeSide(protected.right, protected.free_right, weight, offload=offload)
        # bf16 coordinates would lose small steps; a float64 model keeps its precision.
        precision = torch.promote_types(weight.dtype, torch.float32)
        shape = (*weight.shape[:-2], self.left.coordinates, self.right.coordinates)
        self.core = nn.Parameter(torch.zeros(shape, dtype=precision, device=weight.device))
        self.register_buffer("base", to_host(weight) if offload else weight, persistent=False)
        self.register_buffer("merged", weight if self.base is not weight else weight.clone())
        self.register_buffer("free_mean_square", self._measure_free_part(), persistent=False)
        self.register_buffer("scale", self._scale_of(self.free_mean_square), persistent=False)

    @torch.no_grad()
    def _measure_free_part(self) -> Tensor:
        """Return the mean square of the singular values of what is free in ``W0``, a scalar."""
        # The bases are orthonormal: the coordinates of W0's free part have the norm of that part.
        free_part = self.remove_protected(self.coordinates_of(self.merged))
        smaller = min(self.left.free_rank, self.right.free_rank)
        return free_part.float().square().sum() / max(1, smaller * math.prod(self.merged.shape[:-2]))

    def _scale_of(self, free_mean_square: Tensor) -> Tensor:
        rows, columns = self.merged.shape[-2:]
        return update_scale(rows, columns, self.left, self.right, free_mean_square)

    def carry_scale(self, free_mean_square: float) -> None:
        """Let a learning rate move the weight as it did one whose free part was ``free_mean_square``."""
        self.free_mean_square.fill_(free_mean_square)
        self.scale.copy_(self._scale_of(self.free_mean_square))

    def coordinates_of(self, weight: Tensor) -> Tensor:
        """Return the coordinates ``[..., left, right]`` of ``weight``; the protected part may still be in them.

        The thin side first: it leaves the least to multiply with the other.
        """
        left, right = self.left, self.right
        if self._left_first:
            return right.coordinates_of(left.coordinates_of(weight.mT).mT)
        return left.coordinates_of(right.coordinates_of(weight).mT).mT

    def remove_protected(self, coordinates: Tensor) -> Tensor:
        """Take the protected part out of ``[..., left, right]``."""
        return self.left.remove_protected(self.right.remove_protected(coordinates.mT).mT)

    @property
    def _left_first(self) -> bool:
        left, right = self.left, self.right
        return left.is_free_basis and (not right.is_free_basis or left.coordinates <= right.coordinates)

    @torch.no_grad()
    def merge(self) -> None:
        """Write ``W0 + scale P X Q`` into ``merged``, rounded once, after taking the protected part out of ``core``."""
        if self.core.numel() == 0:
            return
        self.core.copy_(self.remove_protected(self.core))
        update = self.left.expand(self.right.expand(self.core.mT).mT)
        base = self.base.to(self.merged.device, non_blocking=True)
        self.merged.copy_(torch.addcmul(base.to(self.core.dtype), update.to(self.core.dtype), self.scale))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take the protected part out of the gradient of ``core``, in place."""
        if self.core.grad is not None:
            self.core.grad = self.remove_protected(self.core.grad)

    def forward(self, base: Tensor) -> Tensor:
        """Return the merged weight in place of ``base``, as a parametrization of ``torch.nn.utils.parametrize``.

        For modules with a computation of their own: the gradient of the weight, which they make in full, is mapped to
        that of the core.
        """
        del base
        return _MergedWeightFunction.apply(self.core, self)

    def core_gradient(self, output_gradient: Tensor, inputs: Tensor) -> Tensor:
        """Return the gradient of ``core`` for ``outputs = inputs W^T``; the protected part may still be in it.

        ``dL/dcore = scale (dY left)^T X right``, multiplied in the order that costs least: the thin side first. No
        gradient of the weight's full size is made unless neither side is thin.

        Args:
            output_gradient: ``[tokens, rows]``.
            inputs: ``[tokens, columns]``.
        """
        left, right = self.left, self.right
        if self._left_first:
            raw = right.coordinates_of(left.coordinates_of(output_gradient).mT @ inputs)
        else:
            raw = left.coordinates_of((output_gradient.mT @ right.coordinates_of(inputs)).mT).mT
        return raw.to(self.core.dtype) * self.scale


class SubspaceLinear(nn.Module):
    """A linear layer ``[in_features] -> [out_features]`` with a :class:`SubspaceWeight`; its bias is as it was."""

    def __init__(self, subspace: SubspaceWeight, bias: nn.Parameter | None) -> None:
        """Take over ``bias`` without a copy."""
        super().__init__()
        self.subspace = subspace
        self.bias = bias
        self.out_features, self.in_features = subspace.merged.shape

    @property
    def weight(self) -> Tensor:
        """The merged weight ``[out_features, in_features]``, for code that multiplies with it itself."""
        return self.subspace(self.subspace.merged)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]`` with the merged weight."""
        return _SubspaceLinearFunction.apply(inputs, self.bias, self.subspace.core, self.subspace)


class _SubspaceLinearFunction(torch.autograd.Function):
    """``inputs W^T + bias`` with the gradient of ``core`` in place of the weight's."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, core: Tensor, subspace: SubspaceWeight) -> Tensor:
        ctx.subspace = subspace
        ctx.trains_core = core.requires_grad and core.numel() > 0
        ctx.save_for_backward(*([inputs] if ctx.trains_core else []))
        return F.linear(inputs, subspace.merged, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        subspace: SubspaceWeight = ctx.subspace
        needs_inputs, needs_bias, *_ = ctx.needs_input_grad
        of_inputs = gradient @ subspace.merged if needs_inputs else None
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_bias = flat.sum(0) if needs_bias else None
        of_core = None
        if ctx.trains_core:
            (inputs,) = ctx.saved_tensors
            of_core = subspace.core_gradient(flat, inputs.reshape(-1, inputs.shape[-1]))
        return of_inputs, of_bias, of_core, None


class _MergedWeightFunction(torch.autograd.Function):
    """The merged weight as a function of ``core``."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, subspace: SubspaceWeight) -> Tensor:
        ctx.subspace = subspace
        # An alias: autograd would take the stored tensor itself for the output of this call.
        return subspace.merged.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        subspace: SubspaceWeight = ctx.subspace
        return subspace.coordinates_of(gradient).to(subspace.core.dtype) * subspace.scale, None


def update_scale(rows: int, columns: int, left: FreeSide, right: FreeSide, free_mean_square: Tensor) -> Tensor:
    """Return the factor that makes a learning rate move a weight as far as it does in the paper's factored form.

    So a learning rate that was tuned for the factors carries over. AdamW moves every trained value by about the
    learning rate ``eta``. Of such a step the share ``alpha`` lies in the space of its gradient, and of the rest only
    what happens to be free counts. With ``r`` trained singular values of mean square ``s^2``, and ``a`` of ``n`` rows'
    directions and ``b`` of ``m`` columns' free, the factors then move the weight by (squared Frobenius norm)

        eta^2 r ( s^2 (alpha (n + m) + (1 - alpha) (a + b)) + 2 alpha s^2 r sqrt(n m / (a b)) + 1 )

    for V_low and U_low, both together since they follow one gradient, and S_low. A core of ``c_l x c_r`` values moves
    it by ``eta^2 (alpha c_l c_r + (1 - alpha) a b)``. The factor is the root of the ratio.

    ``benchmarks/update_size.py`` measures how well that holds.

    Args:
        rows: ``n``.
        columns: ``m``.
        left: of the rows.
        right: of the columns.
        free_mean_square: ``s^2``, a scalar.
    """
    free_left, free_right = left.free_rank, right.free_rank
    rank = min(free_left, free_right)
    if rank == 0:
        return torch.ones_like(free_mean_square)
    aligned, rest = ALIGNED_SHARE, 1 - ALIGNED_SHARE
    sides = aligned * (rows + columns) + rest * (free_left + free_right)
    together = 2 * aligned * rank * math.sqrt(rows * columns / (free_left * free_right))
    factored = rank * (free_mean_square * (sides + together) + 1)
    core = aligned * left.coordinates * right.coordinates + rest * free_left * free_right
    return (factored / core).sqrt()


def to_host(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the host's memory; what was on a GPU is pinned, which makes copies to it faster."""
    return tensor.cpu().pin_memory() if tensor.is_cuda else tensor.cpu()
