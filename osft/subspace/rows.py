"""A trained weight whose rows lie spread over the processes: what each does to its own once a step.

With ``W_i``, ``L_i`` and so on for a process's rows, and ``core_i`` for its rows of the core, the update is

    W_i = W0_i + scale * L_i core R^T        left basis free: needs the whole core
    W_i = W0_i + scale * core_i R^T          left directions protected: the core's rows are the weight's

and protected directions leave the core by

    core_i - L_i (sum_j L_j^T core_j)        a sum over the processes, as small as the core
    core_i - (core_i R) R^T                  needs the whole R

So what travels once a step is, of each weight, the core and the bases of the columns' side: less than FSDP gathers in
a forward pass. Of a stack of experts each process has some experts whole, and nothing travels.
"""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from osft.subspace.exchange import gather
from osft.subspace.parametrization import SubspaceWeight


class RowShardedWeight(SubspaceWeight):
    """A :class:`SubspaceWeight` whose tensors are distributed by their first dimension, when no block is gathered."""

    @torch.no_grad()
    def merge(self) -> None:
        """Write this process's rows of ``W0 + scale P X Q``, after taking the protected part out of its core's."""
        if self.core.numel() == 0:
            return
        own_core = _own(self.core)
        own_core.copy_(self._remove_protected_part(own_core))
        update = own_core
        if self.left.is_free_basis:
            left = _own(self.left.basis)
            update = left @ self._needed(self.core.to(left.dtype))
        if self.right.is_free_basis:
            right = self._needed(self.right.basis)
            update = update.to(right.dtype) @ right.mT
        merged = torch.addcmul(_own(self.base).to(own_core.dtype), update.to(own_core.dtype), self.scale)
        _own(self.merged).copy_(merged)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take the protected part out of this process's rows of the gradient of ``core``, in place."""
        if self.core.grad is not None and self.core.numel():
            own_gradient = _own(self.core.grad)
            own_gradient.copy_(self._remove_protected_part(own_gradient))

    def _remove_protected_part(self, own: Tensor) -> Tensor:
        """Return this process's rows of the coordinates without their protected part."""
        if not self.right.is_free_basis and self.right.basis.shape[-1]:
            right = self._needed(self.right.basis)
            own = own - ((own.to(right.dtype) @ right) @ right.mT).to(own.dtype)
        if not self.left.is_free_basis and self.left.basis.shape[-1]:
            left = _own(self.left.basis)
            overlap = (left.mT @ own.to(left.dtype)).to(own.dtype)
            if not self._is_stack:
                dist.all_reduce(overlap)
            own = own - (left @ overlap.to(left.dtype)).to(own.dtype)
        return own

    @property
    def _is_stack(self) -> bool:
        return self.core.ndim == 3

    def _needed(self, tensor: Tensor) -> Tensor:
        """Return all of ``tensor``; of a stack's the part of this process's experts."""
        return _own(tensor) if self._is_stack else gather(tensor)


def _own(tensor: Tensor) -> Tensor:
    """Return what this process holds of a distributed tensor."""
    return cast(DTensor, tensor).to_local()
