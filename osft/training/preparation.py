"""Making a loaded model ready to train: kernels, targets, what is protected, the same in every process."""

import logging
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.data.samples import Sample
from osft.errors import ConfigError
from osft.processes.group import Processes
from osft.subspace.attach import Source, attach
from osft.subspace.exchange import spread
from osft.subspace.inputs import InputPlace, input_places
from osft.subspace.memory.chain import begin_memory, carry_scales
from osft.subspace.memory.memory import SubspaceMemory
from osft.subspace.sources import choose_source
from osft.subspace.targets import Target, find_targets
from osft.training.liger import apply_liger
from osft.training.model_files import LoadedModel
from osft.training.sharding import empty_copy, shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedModel:
    """A model whose targets train in their free subspaces."""

    loaded: LoadedModel
    with_weights: Callable[..., Any]
    """Calls a function with arguments where the weights are there; the forward passes of a step belong inside."""

    places: Mapping[str, InputPlace]
    """Where the inputs of the targets come in, by their names."""

    memory: SubspaceMemory | None
    """What is protected of what was learnt before this run, where a memory is asked for."""

    @property
    def model(self) -> PreTrainedModel:
        """The model; of one that is spread over processes, weights are whole only within :attr:`with_weights`."""
        return self.loaded.model


def prepare_model(
    loaded: LoadedModel,
    config: TrainingConfig,
    samples: Sequence[Sample],
    processes: Processes,
    protect: Source | None = None,
    entered: Callable[[str], None] = lambda _: None,
) -> PreparedModel:
    """Let the targets of a model train in their free subspaces; every process must call this.

    Args:
        loaded: a model on the device of this process, or spread over all of them; it is used up.
        config: says what is protected and how.
        samples: the rows to train on; adaptive ranks look at a few.
        processes: this process and the others.
        protect: what is protected of each matrix, where that is known; else it is computed.
        entered: is told of each part of the work when it begins, in every process of the same ones.

    Raises:
        ConfigError: if a target pattern matches nothing, several processes are to train the factored reference, or
            the memory is of another model.
        DataError: if the text of ``protect_inputs_of`` or ``calibration`` is not what it should be.
        MissingPathError: if there is no memory in ``subspace_memory``.
    """
    start, num_parameters = time.monotonic(), loaded.model.num_parameters()
    if processes.world_size == 1:
        prepared, targets = _attach_all(loaded, config, samples, protect, entered)
    else:
        prepared, targets = _spread(loaded, config, samples, processes, protect, entered)
    model = prepared.model
    if model.device.type == "cuda" and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    logger.info(
        "unfreeze_rank_ratio %s: %d weights are targets, %d values are trained, the model has %d; ready after %.1f s",
        config.unfreeze_rank_ratio, len(targets), count_trainable(model), num_parameters, time.monotonic() - start,
    )  # fmt: skip
    return prepared


def count_trainable(model: nn.Module) -> int:
    """Return how many values of ``model`` are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _attach_all(
    loaded: LoadedModel,
    config: TrainingConfig,
    samples: Sequence[Sample],
    protect: Source | None,
    entered: Callable[[str], None],
) -> tuple[PreparedModel, list[Target]]:
    """Attach to a model that this process has for itself."""
    model = loaded.model
    if config.use_liger:
        apply_liger(model)
    targets = find_targets(model, config.target_patterns)
    places = input_places(model, targets)
    memory = begin_memory(model, places, config, goes_on=protect is not None, entered=entered)
    attach(
        model,
        targets,
        protect or _choose_source(model, targets, config, samples, memory),
        factored=config.parametrization == "factored",
        train_other_parameters=config.train_other_parameters,
        offload=config.save_memory and model.device.type == "cuda",
    )
    carry_scales(model, memory)
    return PreparedModel(loaded=loaded, with_weights=operator.call, places=places, memory=memory), targets


def _spread(
    loaded: LoadedModel,
    config: TrainingConfig,
    samples: Sequence[Sample],
    processes: Processes,
    protect: Source | None,
    entered: Callable[[str], None],
) -> tuple[PreparedModel, list[Target]]:
    """Attach to a model that all processes have together."""
    if config.parametrization == "factored":
        raise ConfigError(
            f"parametrization='factored' is the slow reference, for one process; this run has {processes.world_size}. "
            "Choose 'linear'."
        )
    model = empty_copy(loaded.model)
    if config.use_liger:
        apply_liger(model)
    targets = find_targets(model, config.target_patterns)
    places = input_places(model, targets)
    memory = begin_memory(loaded.model, places, config, goes_on=protect is not None, entered=entered)
    if protect is None:
        source = _choose_source(loaded.model, targets, config, samples, memory)
        protect = spread(source, loaded.model, targets, entered)
    root = shard(
        model,
        loaded.model,
        targets,
        protect,
        train_other_parameters=config.train_other_parameters,
        entered=entered,
    )
    carry_scales(model, memory)
    spread_model = replace(loaded, model=model)
    return PreparedModel(loaded=spread_model, with_weights=root, places=places, memory=memory), targets


def _choose_source(
    model: PreTrainedModel,
    targets: Sequence[Target],
    config: TrainingConfig,
    samples: Sequence[Sample],
    memory: SubspaceMemory | None,
) -> Source:
    cache = Path(config.decomposition_cache) if config.decomposition_cache else None
    return choose_source(model, targets, config, samples, cache, memory)
