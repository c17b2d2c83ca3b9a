"""The paper's own form of a trained weight: the factors of what is not protected, kept in place by projection.

    W = W_fixed + U_low diag(S_low) V_low        trained: U_low [rows, r], S_low [r], V_low [r, columns]

Gradients of ``U_low`` and ``V_low`` lose their protected part before the optimizer sees them. AdamW rescales every
value on its own and so leaves the free subspace all the same: after its step the factors are projected once more.

It is here as the reference that :mod:`osft.subspace.parametrization` is compared with: clear, not fast. It rebuilds
the weight in every forward pass, keeps more values, and starts from the base weight up to rounding, not bit for bit.
It works on one matrix ``[rows, columns]`` and on a stack ``[experts, rows, columns]`` alike.

Source: Nayak et al. 2025, arXiv:2504.07097, section 3 and algorithm 1; the projection after the step is that of
https://github.com/Red-Hat-AI-Innovation-Team/mini_trainer, release 0.9.0, which this follows step by step.
"""

import torch
from torch import Tensor, nn

from osft.subspace.decomposition import ProtectedSubspace, orthonormal_complement
from osft.subspace.parametrization import TrainedWeight


class FactoredWeight(TrainedWeight):
    """A weight of which three factors are trained; also a parametrization for ``torch.nn.utils.parametrize``.

    ``u_low`` ``[..., rows, r]``, ``s_low`` ``[..., r]`` and ``v_low`` ``[..., r, columns]`` start as the singular
    value decomposition of the base weight's free part, with ``r`` the number of free directions of the side that
    has fewer.
    """

    fixed: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, protected: ProtectedSubspace) -> None:
        """Take over ``weight`` ``[..., rows, columns]`` as ``merged`` without a copy and decompose its free part."""
        super().__init__()
        weight = weight.detach()
        # bf16 factors would lose small steps; a float64 model keeps its precision.
        precision = torch.promote_types(weight.dtype, torch.float32)
        u_low, s_low, v_low = decompose_free_part(weight, protected)
        self.u_low = nn.Parameter(u_low.to(precision))
        self.s_low = nn.Parameter(s_low.to(precision))
        self.v_low = nn.Parameter(v_low.to(precision))
        fixed = weight.to(u_low.dtype) - multiply_factors(u_low, s_low, v_low)
        # Contiguous: processes exchange them, and columns cut from a larger matrix would keep all of it alive.
        for name, tensor in (("fixed", fixed), ("left", protected.left), ("right", protected.right)):
            self.register_buffer(name, tensor.to(weight.device, precision).contiguous(), persistent=False)
        self.register_buffer("merged", weight)

    def forward(self, base: Tensor) -> Tensor:
        """Return the weight that the factors make, in the base weight's dtype, in place of ``base``."""
        del base
        return (self.fixed + multiply_factors(self.u_low, self.s_low, self.v_low)).to(self.merged.dtype)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take the protected part out of the gradients of ``u_low`` and ``v_low``, in place; ``s_low`` has none."""
        if self.u_low.grad is not None:
            remove_directions(self.u_low.grad, self.left)
        if self.v_low.grad is not None:
            remove_directions(self.v_low.grad.mT, self.right)

    @torch.no_grad()
    def merge(self) -> None:
        """Take the protected part out of ``u_low`` and ``v_low`` and write the weight into ``merged``."""
        if self.s_low.numel() == 0:
            return
        remove_directions(self.u_low, self.left)
        remove_directions(self.v_low.mT, self.right)
        self.merged.copy_(self(self.merged))


@torch.no_grad()
def decompose_free_part(weight: Tensor, protected: ProtectedSubspace) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``U``, ``S``, ``Vh`` of ``P W Q``, what ``protected`` leaves free of ``weight``.

    If the protected directions are leading singular directions of the weight, these are its other ones. Inside bases
    of the free sides, the decomposition has only free directions to choose from, also for singular values of zero.

    Args:
        weight: ``[..., rows, columns]``, any floating dtype; not changed.
        protected: directions of the two sides.

    Returns:
        float64: ``[..., rows, r]``, ``[..., r]`` and ``[..., r, columns]`` with ``r = min(free_left, free_right)``.
    """
    left = orthonormal_complement(protected.left.to(weight.device))
    right = orthonormal_complement(protected.right.to(weight.device))
    inner = left.mT @ weight.to(torch.float64) @ right
    u_inner, singular_values, v_inner = torch.linalg.svd(inner, full_matrices=False)
    return left @ u_inner, singular_values, v_inner @ right.mT


def multiply_factors(u_low: Tensor, s_low: Tensor, v_low: Tensor) -> Tensor:
    """Return ``U_low diag(S_low) V_low`` ``[..., rows, columns]``."""
    return (u_low * s_low.unsqueeze(-2)) @ v_low


def remove_directions(vectors: Tensor, directions: Tensor) -> None:
    """Take the part along ``directions`` ``[..., size, count]`` out of the columns of ``vectors``, in place.

    Args:
        vectors: ``[..., size, other]``, changed.
        directions: orthonormal columns.
    """
    vectors.sub_(directions @ (directions.mT @ vectors))
