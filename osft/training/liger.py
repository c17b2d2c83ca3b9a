"""Liger's fused kernels on a loaded model."""

import importlib.util

import torch
from transformers import PreTrainedModel

from osft.errors import TrainingError


def require_liger() -> None:
    """Check that Liger kernels can be used here.

    Raises:
        TrainingError: if the package or a GPU is missing.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise TrainingError("use_liger=True needs the package liger-kernel. Install it: pip install liger-kernel.")
    if not torch.cuda.is_available():
        raise TrainingError("use_liger=True needs a GPU, and none is visible. Leave it out on a CPU.")


def apply_liger(model: PreTrainedModel) -> None:
    """Patch ``model`` in place with Liger's kernels for its family; a family without them stays as it is.

    Raises:
        TrainingError: if the package or a GPU is missing.
    """
    require_liger()
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    # The loss is taken of the logits, so the fused linear cross-entropy, which returns none, stays off.
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
