"""What a run protects of each weight: how much, by which directions, computed or read from the cache.

:func:`choose_source` is the one call of the training loop. What it returns is asked once for every matrix while the
targets are attached.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.data.samples import Sample
from osft.errors import TrainingError, one_line
from osft.subspace.allocation import adaptive_ratios
from osft.subspace.attach import Source
from osft.subspace.cache import DecompositionCache
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions
from osft.subspace.exchange import find_owners
from osft.subspace.inputs import (
    equal_length_batches,
    input_covariances,
    load_input_samples,
    protect_input_directions,
)
from osft.subspace.memory.budget import warn_over_budget
from osft.subspace.memory.memory import SubspaceMemory
from osft.subspace.memory.protecting import protect_memory
from osft.subspace.targets import Target

logger = logging.getLogger(__name__)

# Of the training samples, for the layers' importance. A mean over some thousand tokens settles to three digits.
ADAPTIVE_SAMPLES = 32
SECONDS_BETWEEN_LOG_LINES = 5.0
EXPERT_NUMBER = re.compile(r"\[\d+\]$")


def choose_source(
    model: PreTrainedModel,
    targets: Sequence[Target],
    config: TrainingConfig,
    samples: Sequence[Sample],
    cache_folder: Path | None,
    memory: SubspaceMemory | None = None,
) -> Source:
    """Return what says, weight by weight, which directions are protected.

    It is to be called once for each matrix: the covariance of a weight's inputs is freed as it is used. In a run of
    several processes every process must call this.

    Args:
        model: with its base weights, on the device of the run.
        targets: what is trained.
        config: how much is protected, and of what.
        samples: what is trained on; :data:`ADAPTIVE_SAMPLES` of them, evenly spread, tell the layers' importance.
        cache_folder: where decompositions of weights are kept from run to run; ``None``: nowhere.
        memory: what of the weights' inputs is to be protected, the same in every process.

    Raises:
        MissingPathError: if ``protect_inputs_of`` does not exist.
        DataError: if it holds no valid rows.
        ConfigError: if ``rank_allocation="adaptive"`` does not fit the model.
        TrainingError: if the model's activations are not finite.
    """
    ratios = _choose_ratios(model, targets, config, samples)
    cache = DecompositionCache(cache_folder)
    source: Source = _WeightDirections(ratios, cache)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    owners = find_owners(model, targets, world_size)
    if config.protect_inputs_of is not None:
        # A covariance is as large as a weight: each process has those of the weights that it decomposes.
        own_targets = [target for target in targets if owners.get(target.name, rank) == rank]
        covariances = _measure_inputs(model, own_targets, config, ratios)
        source = _InputDirections(targets, ratios, covariances, otherwise=source, join_weights=config.protect_weights)
    if memory is not None:
        if rank == 0:
            warn_over_budget(memory, config.unfreeze_rank_ratio)
        source = _RememberedDirections(targets, ratios, memory, otherwise=source)
    return _Reporting(source, cache, total=list(owners.values()).count(rank))


def _choose_ratios(
    model: PreTrainedModel, targets: Sequence[Target], config: TrainingConfig, samples: Sequence[Sample]
) -> dict[str, float]:
    """Return the ``unfreeze_rank_ratio`` of each target, by its name, the same in every process."""
    if config.rank_allocation == "uniform":
        return {target.name: config.unfreeze_rank_ratio for target in targets}
    chosen = np.unique(np.linspace(0, len(samples) - 1, ADAPTIVE_SAMPLES).round().astype(int))
    batches = equal_length_batches([samples[index] for index in chosen], config.max_tokens_per_gpu)
    ratios = adaptive_ratios(model, targets, batches, config.unfreeze_rank_ratio)
    if dist.is_initialized():
        # The last bit of a mean may differ between GPUs, and with it the shape of what is trained.
        values = torch.tensor(list(ratios.values()), dtype=torch.float64, device=model.device)
        dist.broadcast(values, src=0)
        ratios = dict(zip(ratios, values.tolist(), strict=True))
    return ratios


def _measure_inputs(
    model: PreTrainedModel, targets: Sequence[Target], config: TrainingConfig, ratios: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return the covariance of the inputs of each target that has one, over the text of ``protect_inputs_of``."""
    start = time.monotonic()
    samples = load_input_samples(
        Path(config.protect_inputs_of or ""),
        config.model_path,
        min(config.max_seq_len, config.max_tokens_per_gpu),
        model.config.get_text_config().vocab_size,
        document_column=config.document_column_name,
    )
    covariances = input_covariances(model, targets, equal_length_batches(samples, config.max_tokens_per_gpu))
    tokens = int(samples.lengths.sum())
    logger.info(
        "measured the inputs of %d weights over %d tokens in %.1f s", len(covariances), tokens, time.monotonic() - start
    )
    if without := len(targets) - len(covariances):
        logger.warning(
            "%d of %d weights have no inputs of their own (experts, or not reached by the text); of these the weights' "
            "own directions are protected",
            without, len(targets),
        )  # fmt: skip
    most = max((frozen_rank(len(c), len(c), ratios[name]) for name, c in covariances.items()), default=0)
    if tokens < most:
        logger.warning(
            "%s has %d tokens, fewer than the %d directions that are protected of some inputs; more text fills them",
            config.protect_inputs_of, tokens, most,
        )  # fmt: skip
    return covariances


class _WeightDirections:
    """The leading singular directions of a weight."""

    def __init__(self, ratios: Mapping[str, float], cache: DecompositionCache) -> None:
        self._ratios = ratios
        self._cache = cache

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        ratio = self._ratios[_target_name(name)]
        rows, columns = weight.shape
        protected_rank = frozen_rank(rows, columns, ratio)
        if protected_rank == 0:
            nothing = weight.new_zeros(0)
            return ProtectedSubspace(left=nothing.reshape(rows, 0), right=nothing.reshape(columns, 0))
        return self._cache.get_or_compute(weight, protected_rank, lambda: protect_leading_directions(weight, ratio))


class _InputDirections:
    """The directions of a weight's inputs that a text uses most, where its inputs were measured."""

    def __init__(
        self,
        targets: Sequence[Target],
        ratios: Mapping[str, float],
        covariances: dict[str, Tensor],
        *,
        otherwise: Source,
        join_weights: bool,
    ) -> None:
        self._targets = {target.name: target for target in targets if target.name in covariances}
        self._ratios = ratios
        self._covariances = covariances
        self._otherwise = otherwise
        self._join_weights = join_weights

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        target = self._targets.get(name)
        if target is None:
            return self._otherwise(name, weight)
        return protect_input_directions(
            weight,
            self._covariances.pop(name),
            self._ratios[name],
            inputs_are_columns=target.inputs_are_columns,
            join_weights=self._join_weights,
        )


class _RememberedDirections:
    """The directions of a weight's inputs that a memory knows, where it does."""

    def __init__(
        self, targets: Sequence[Target], ratios: Mapping[str, float], memory: SubspaceMemory, *, otherwise: Source
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._ratios = ratios
        self._groups = {name: group for group in memory.groups for name in group.targets}
        self._otherwise = otherwise

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        if name not in self._groups:
            return self._otherwise(name, weight)
        columns = self._targets[name].inputs_are_columns
        return protect_memory(weight, self._groups[name], self._ratios[name], inputs_are_columns=columns)


class _Reporting:
    """Another source, with a log line now and then and one behind the last weight."""

    def __init__(self, source: Source, cache: DecompositionCache, *, total: int) -> None:
        self._source = source
        self._cache = cache
        self._total = total
        self._done = 0
        self._seconds = 0.0
        self._last_line = time.monotonic()

    def __call__(self, name: str, weight: Tensor) -> ProtectedSubspace:
        start = time.monotonic()
        try:
            protected = self._source(name, weight)
        except torch.linalg.LinAlgError as error:
            raise TrainingError(
                f"{name} cannot be decomposed: {one_line(error)}. Are all of its values finite?"
            ) from error
        now = time.monotonic()
        self._done += 1
        self._seconds += now - start
        if self._done == self._total or now - self._last_line >= SECONDS_BETWEEN_LOG_LINES:
            self._last_line = now
            logger.info(
                "decomposed %d of %d weights in %.1f s, %d of them read from the cache",
                self._done, self._total, self._seconds, self._cache.hits,
            )  # fmt: skip
        return protected


def _target_name(name: str) -> str:
    """Return the target that ``<target>[<expert>]`` belongs to."""
    return EXPERT_NUMBER.sub("", name)
