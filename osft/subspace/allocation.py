"""How the free directions are shared out among the layers: more where a layer changes its input more.

A layer is important, says the paper, when it hands its input on with little change of direction:

    I(l) = mean over tokens of cos( input of l, output of l ),   scaled so that the mean over the layers is 1
    r(l) = mrr + I(l) (trr - mrr)

where ``r`` is the share of singular directions that stays fixed, ``trr`` the target retention ratio,
``1 - unfreeze_rank_ratio``, and ``mrr`` the minimum one. The mean of ``r`` is ``trr``, so the ratio that was asked for
holds over the model. The paper's values are 0.8 and 0.1; see :data:`MINIMUM_SHARE_OF_TARGET`.

A layer is a repeated block of the model (attention and MLP together), the only place where input and output have the
same size; every target in it takes the block's ratio.

Source: Nayak et al. 2025, arXiv:2504.07097, the section on adaptive rank selection.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from osft.errors import ConfigError, TrainingError
from osft.subspace.inputs import run_text
from osft.subspace.targets import Target

logger = logging.getLogger(__name__)

# mrr / trr. The paper's mrr is 0.1 at its trr of 0.8. A constant mrr would lie above trr once more than 90% of the
# directions are free, and the order of the layers would turn round; as a share it keeps the paper's values at 0.8.
MINIMUM_SHARE_OF_TARGET = 0.125


def adaptive_ratios(
    model: PreTrainedModel, targets: Sequence[Target], batches: Iterable[Tensor], unfreeze_rank_ratio: float
) -> dict[str, float]:
    """Return the share of free directions of each target, by its name.

    Targets outside the repeated blocks, and in blocks that the text does not reach, take ``unfreeze_rank_ratio``.

    Args:
        model: with the weights that the targets were found in.
        targets: what is trained.
        batches: token ids, each ``[samples, tokens]``, without padding.
        unfreeze_rank_ratio: their mean, 0 to 1.

    Raises:
        ConfigError: if a block's output has another shape than its input, or its input is not to be seen.
        TrainingError: if activations are not finite.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    blocks = {target.name: _block_of(target.module_name, lists) for target in targets}
    similarities = _block_similarities(model, sorted({block for block in blocks.values() if block}), batches)
    of_block = ratios_from_similarities(similarities, unfreeze_rank_ratio)
    for block, ratio in of_block.items():
        logger.info("%s: similarity %.3f, unfreeze_rank_ratio %.3f", block, similarities[block], ratio)
    return {name: of_block.get(block or "", unfreeze_rank_ratio) for name, block in blocks.items()}


def _block_of(module_name: str, lists: Collection[str]) -> str | None:
    """Return the repeated block that holds a module: the entry of the outermost list, for experts are lists inside."""
    parts = module_name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
    outermost = next((prefix for prefix in prefixes if prefix in lists), None)
    return None if outermost is None else ".".join(parts[: outermost.count(".") + 2])


def _block_similarities(model: PreTrainedModel, blocks: Sequence[str], batches: Iterable[Tensor]) -> dict[str, float]:
    """Return the mean cosine of input and output over the tokens, of each block that the text reaches."""
    sums = {block: _SimilaritySum(block) for block in blocks}
    with ExitStack() as hooks:
        for block, total in sums.items():
            hooks.enter_context(model.get_submodule(block).register_forward_hook(total.add, with_kwargs=True))
        run_text(model, batches)
    return {block: total.mean() for block, total in sums.items() if total.tokens}


class _SimilaritySum:
    """The sum of the cosines of one block."""

    def __init__(self, block: str) -> None:
        self._block = block
        self._sum = torch.zeros((), dtype=torch.float64)
        self.tokens = 0

    def add(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """Add the tokens of one call of the block; a forward hook."""
        inputs = arguments[0] if arguments else named.get("hidden_states")
        outputs = output[0] if isinstance(output, tuple) else output
        if inputs is None:
            raise ConfigError(
                f"rank_allocation='adaptive' compares what goes into a block with what comes out, but {self._block} "
                f"is called with {', '.join(named)} alone. Choose 'uniform'."
            )
        if inputs.shape != outputs.shape:
            raise ConfigError(
                f"rank_allocation='adaptive' compares what goes into a block with what comes out, but {self._block} "
                f"maps {tuple(inputs.shape)} to {tuple(outputs.shape)}. Choose 'uniform'."
            )
        cosines = F.cosine_similarity(inputs.float(), outputs.float(), dim=-1)
        self._sum = self._sum.to(cosines.device) + cosines.sum(dtype=torch.float64)
        self.tokens += cosines.numel()

    def mean(self) -> float:
        """Return the mean cosine of the tokens so far."""
        mean = float(self._sum) / self.tokens
        if not math.isfinite(mean):
            raise TrainingError(
                f"the activations of {self._block} are not finite on the training rows. Check the model."
            )
        return mean


def ratios_from_similarities(similarities: Mapping[str, float], unfreeze_rank_ratio: float) -> dict[str, float]:
    """Return ``1 - r(l)`` of each layer, within 0 to 1; their mean is ``unfreeze_rank_ratio`` unless one is clipped.

    A negative similarity counts as none. At ``unfreeze_rank_ratio`` 0 nothing may move, in no layer.

    Args:
        similarities: mean cosine of input and output, -1 to 1, by layer.
        unfreeze_rank_ratio: share of the directions set free, 0 to 1.
    """
    if unfreeze_rank_ratio == 0:
        return dict.fromkeys(similarities, 0.0)
    positive = {layer: max(0.0, similarity) for layer, similarity in similarities.items()}
    total = sum(positive.values())
    target = 1 - unfreeze_rank_ratio
    minimum = MINIMUM_SHARE_OF_TARGET * target
    ratios = {}
    for layer, similarity in positive.items():
        importance = similarity * len(positive) / total if total > 0 else 1.0
        retention = minimum + importance * (target - minimum)
        ratios[layer] = 1 - min(max(retention, 0.0), 1.0)
    return ratios
