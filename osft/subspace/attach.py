"""Where a model is trained: its targets become :class:`SubspaceLinear` layers, in place.

Everything that is not a target is frozen. What is left unprotected (embeddings, head, norms) is where most of the
forgetting happens, so it does not move.
"""

import logging
import re
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from osft.errors import ConfigError
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.parametrization import SubspaceLinear

logger = logging.getLogger(__name__)

MAX_CANDIDATES_SHOWN = 20


def find_targets(model: PreTrainedModel, target_patterns: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """Return the linears to train, by module name, in the order of the model.

    Args:
        model: a causal language model.
        target_patterns: regular expressions; a linear is a target when its name contains a match of one. Without
            them, every linear inside the model's repeated blocks (its ``nn.ModuleList``) is: attention and MLP,
            whatever the family calls them, and neither embeddings nor head.

    Raises:
        ConfigError: if nothing matches; the message lists candidates.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if target_patterns is None:
        blocks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        targets = {name: linear for name, linear in linears.items() if name.startswith(blocks)}
    else:
        patterns = [re.compile(pattern) for pattern in target_patterns]
        targets = {name: linear for name, linear in linears.items() if any(p.search(name) for p in patterns)}
    # The head shares its weight with the embeddings in many models; training it would move both.
    head = model.get_output_embeddings()
    targets = {name: linear for name, linear in targets.items() if linear is not head}
    if not targets:
        asked = "the default" if target_patterns is None else f"target_patterns={list(target_patterns)}"
        candidates = [name for name, linear in linears.items() if linear is not head][:MAX_CANDIDATES_SHOWN]
        raise ConfigError(
            f"{asked} matches no linear layer of {type(model).__name__}. "
            f"Choose from: {', '.join(candidates) or 'it has none'}."
        )
    return targets


def attach(
    model: PreTrainedModel,
    unfreeze_rank_ratio: float,
    target_patterns: Sequence[str] | None = None,
) -> None:
    """Freeze ``model`` and let its targets move outside their leading singular directions, in place.

    The model's outputs do not change, to the last bit.

    Args:
        model: a causal language model with its weights loaded.
        unfreeze_rank_ratio: share of singular directions set free, 0 to 1.
        target_patterns: as in :func:`find_targets`.

    Raises:
        ConfigError: if nothing matches.
    """
    targets = find_targets(model, target_patterns)
    model.requires_grad_(False)
    _warn_of_experts(model)
    for name, linear in targets.items():
        protected = protect_leading_directions(linear.weight.detach(), unfreeze_rank_ratio)
        model.set_submodule(name, SubspaceLinear(linear, protected))


def _warn_of_experts(model: PreTrainedModel) -> None:
    """Say what stays frozen because it is not a linear layer: experts that share one three-dimensional weight."""
    experts = [parameter for parameter in model.parameters() if parameter.ndim == 3]
    if experts:
        count = sum(parameter.numel() for parameter in experts)
        logger.warning("%d values in weights of three dimensions (experts) are not trained", count)


def subspace_layers(model: nn.Module) -> Iterator[tuple[str, SubspaceLinear]]:
    """Yield name and layer of every trained layer."""
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLinear):
            yield name, module


def merge(model: nn.Module) -> None:
    """Bring the merged weight of every trained layer up to date with its parameter."""
    for _, layer in subspace_layers(model):
        layer.merge()
