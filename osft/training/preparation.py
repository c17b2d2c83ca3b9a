"""Making a loaded model ready to train: kernels, targets, what is protected, the same in every process."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.data.samples import Sample
from osft.processes.group import Processes, copy_from_first
from osft.subspace.attach import attach, trained_weights
from osft.subspace.sources import choose_source
from osft.subspace.targets import find_targets
from osft.training.liger import apply_liger

logger = logging.getLogger(__name__)


def prepare_model(
    model: PreTrainedModel, config: TrainingConfig, samples: Sequence[Sample], processes: Processes
) -> None:
    """Let the targets of ``model`` train in their free subspaces, in place; every process must call this.

    Args:
        model: as it was loaded, on the device of this process.
        config: says what is protected and how.
        samples: the rows to train on; adaptive ranks look at a few.
        processes: this process and the others.

    Raises:
        ConfigError: if a target pattern matches nothing.
        DataError: if the text of ``protect_inputs_of`` is not what it should be.
    """
    if config.use_liger:
        apply_liger(model)
    start, num_parameters = time.monotonic(), model.num_parameters()
    targets = find_targets(model, config.target_patterns)
    cache = Path(config.decomposition_cache) if config.decomposition_cache else None
    attach(
        model,
        targets,
        choose_source(model, targets, config, samples, cache),
        factored=config.parametrization == "factored",
        train_other_parameters=config.train_other_parameters,
        offload=config.save_memory and model.device.type == "cuda",
    )
    copy_from_first(made_by_attach(model), processes)
    if model.device.type == "cuda" and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    logger.info(
        "unfreeze_rank_ratio %s: %d weights are targets, %d values are trained, the model has %d; ready after %.1f s",
        config.unfreeze_rank_ratio, len(targets), count_trainable(model), num_parameters, time.monotonic() - start,
    )  # fmt: skip


def made_by_attach(model: nn.Module) -> Iterator[Tensor]:
    """Yield bases and what is expressed in them.

    Where singular values are equal, a basis depends on the machine that computed it, and the sum of gradients in
    different bases would mean nothing.
    """
    for _, weight in trained_weights(model):
        for name, tensor in (*weight.named_parameters(), *weight.named_buffers()):
            if name not in ("base", "merged"):
                yield tensor


def count_trainable(model: nn.Module) -> int:
    """Return how many values of ``model`` are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
