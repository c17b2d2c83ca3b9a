"""Liger's fused kernels on a loaded model."""

import importlib.util
import logging
from collections.abc import Collection

import torch
from transformers import PreTrainedModel

from osft.errors import TrainingError

logger = logging.getLogger(__name__)


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
    """Patch ``model`` in place with Liger's kernels; a family that Liger has none for stays as it is, with a warning.

    Raises:
        TrainingError: if the package or a GPU is missing.
    """
    require_liger()
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if is_known_family(model.config.model_type, MODEL_TYPE_TO_APPLY_LIGER_FN):
        # The loss is computed in chunks by osft.training.loss; Liger's stays off.
        _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)


def is_known_family(model_type: str, known: Collection[str]) -> bool:
    """Return whether Liger has kernels for ``model_type``; warn if not, since Liger itself says nothing then."""
    if model_type not in known:
        logger.warning("use_liger=True: liger-kernel has no kernels for '%s' models; training without", model_type)
    return model_type in known
