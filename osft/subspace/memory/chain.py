"""A run as a link of a chain: the memory that it protects, and the one that it leaves.

The first link has no memory to begin with. Given a text that stands for what its base model must keep, or told to have
the model sample some, it makes a memory of that and protects it; otherwise the weights' own directions are protected,
as in the paper. After the training every link adds the covariances of its own data, as the trained model sees them:
one pass over a sample of the data.

In several processes each measures and decomposes its share of the groups; then all have all of them, in the host's
memory. Only the first process reads and writes files.
"""

import logging
import operator
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.data.processing.tokenizing import load_tokenizer
from osft.data.samples import Sample, token_lengths
from osft.errors import ConfigError, MissingPathError
from osft.subspace.attach import trained_weights
from osft.subspace.inputs import InputPlace, load_input_samples
from osft.subspace.memory.groups import Group
from osft.subspace.memory.measuring import Call, measure_groups, spread_samples
from osft.subspace.memory.memory import GroupMemory, SubspaceMemory
from osft.subspace.memory.merging import Spectrum, add_covariance, cut, largest_share
from osft.subspace.memory.self_samples import sample_texts
from osft.subspace.parametrization import SubspaceWeight

logger = logging.getLogger(__name__)

MEMORY_FOLDER = "memory"
# What the base model must keep, while the first link trains; a run that goes on from a checkpoint reads it.
BASE_FOLDER = "base_memory"
# Of a task's data. A covariance of 14,336 inputs is full after as many tokens; this is a forward pass of seconds.
REMEMBERED_TOKENS = 1 << 16
# As many as the calibration texts of the usual pruning and quantization methods, twice over.
SELF_SAMPLES = 256
SELF_SAMPLE_TOKENS = 256

Result = TypeVar("Result")
Entered = Callable[[str], None]


def begin_memory(
    model: PreTrainedModel,
    places: Mapping[str, InputPlace],
    config: TrainingConfig,
    *,
    goes_on: bool,
    entered: Entered = lambda _: None,
) -> SubspaceMemory | None:
    """Return what a run protects of what was learnt before it; ``None`` where that is not asked for.

    A run that goes on knows already what is protected; it needs the scales of the updates, and what to add to.

    Every process must call this, while the model has its base weights.

    Args:
        model: with its base weights, on the device of the run; it may be spread over the processes.
        places: where the inputs of the targets come in, by their names.
        config: says which memory, and what a first one is made from.
        goes_on: whether the run goes on from a checkpoint, of the same configuration and base model.
        entered: is told of each part of the work when it begins.

    Raises:
        ConfigError: if the memory is of another model.
        DataError: if ``calibration`` is not what it should be.
        MissingPathError: if there is no memory in ``subspace_memory``, or no tokenizer to sample texts with.
    """
    sizes = {name: place.inputs for name, place in places.items()}
    if config.subspace_memory is not None:
        given = config.subspace_memory
        entered("reading the subspace memory")
        memory = _from_first(lambda: SubspaceMemory.load(given))
        memory.require_fits(sizes, given)
        return memory
    if not config.remember or (config.base_memory == "weights" and config.calibration is None):
        return None
    folder = config.checkpoint_directory / BASE_FOLDER
    kept = _from_first(lambda: _kept(folder)) if goes_on else None
    if kept is not None:
        return kept
    entered("measuring what the base model must keep")
    samples = _base_samples(model, config, entered)
    memory = add_task(None, model, places, samples, config.max_tokens_per_gpu, operator.call, entered)
    if _is_first():
        memory.save(folder)
    return memory


def carry_scales(model: PreTrainedModel, memory: SubspaceMemory | None) -> None:
    """Let each target move by a learning rate as it did at the first link of the chain; once they are attached."""
    known = memory.free_mean_squares if memory else {}
    for name, weight in trained_weights(model):
        if name in known and isinstance(weight, SubspaceWeight):
            weight.carry_scale(known[name])


def _free_mean_squares(model: PreTrainedModel) -> dict[str, float]:
    return {
        name: weight.free_mean_square.item()
        for name, weight in trained_weights(model)
        if isinstance(weight, SubspaceWeight)
    }


def finish_memory(
    earlier: SubspaceMemory | None,
    model: PreTrainedModel,
    places: Mapping[str, InputPlace],
    samples: Sequence[Sample],
    config: TrainingConfig,
    call: Call,
    entered: Entered = lambda _: None,
) -> None:
    """Write ``<ckpt_output_dir>/memory``: what was learnt before, and what this run learnt. Every process must call.

    Args:
        earlier: what :func:`begin_memory` returned.
        model: as the run has trained it.
        places: what :func:`begin_memory` was given.
        samples: what was trained on; :data:`REMEMBERED_TOKENS` of it are measured.
        config: the run's.
        call: calls a function where the weights are there.
        entered: is told of each part of the work when it begins.
    """
    entered("measuring what was learnt")
    sample = spread_samples(samples, REMEMBERED_TOKENS)
    memory = add_task(earlier, model, places, sample, config.max_tokens_per_gpu, call, entered)
    if _is_first():
        memory.save(config.checkpoint_directory / MEMORY_FOLDER)


def remove_base_memory(config: TrainingConfig) -> None:
    """Remove what only a run that goes on would read; once the run's result is on disk."""
    if _is_first():
        shutil.rmtree(config.checkpoint_directory / BASE_FOLDER, ignore_errors=True)


def add_task(
    earlier: SubspaceMemory | None,
    model: PreTrainedModel,
    places: Mapping[str, InputPlace],
    samples: Sequence[Sample],
    max_tokens_at_once: int,
    call: Call,
    entered: Entered = lambda _: None,
) -> SubspaceMemory:
    """Return ``earlier`` with what ``samples`` put into the layers of ``model``. Every process must call this.

    What earlier tasks put into inputs that this run measures nothing of is kept as it is.

    Raises:
        TrainingError: if inputs are not finite.
    """
    start = time.monotonic()
    own: dict[int, GroupMemory] = {}
    for number, group, covariance in measure_groups(model, places, samples, max_tokens_at_once, call):
        entered(f"decomposing the inputs of {group[0]}")
        if covariance is not None:
            before = earlier.group_of(group[0]) if earlier else None
            own[number] = add_covariance(_with_untrained(group, before, places), covariance, before)
    groups = _within_limit(own, earlier)
    tokens = int(token_lengths(samples).sum())
    memory = SubspaceMemory(
        groups=groups,
        tasks=1 if earlier is None else earlier.tasks + 1,
        tokens=tokens if earlier is None else earlier.tokens + tokens,
        # What an earlier link knows stays.
        free_mean_squares=_free_mean_squares(model) | dict(earlier.free_mean_squares if earlier else {}),
    )
    logger.info(
        "memory of %d tasks: %d inputs of %d weights over %d tokens, %.1f MB, in %.1f s",
        memory.tasks, len(memory.groups), len(places), tokens, memory.size_bytes / 1e6, time.monotonic() - start,
    )  # fmt: skip
    return memory


def _within_limit(own: Mapping[int, GroupMemory], earlier: SubspaceMemory | None) -> tuple[GroupMemory, ...]:
    """Return every process's groups, and those of ``earlier`` that none has measured, cut to the size of a memory."""
    spectra = _from_all({number: (group.targets, Spectrum.of(group)) for number, group in own.items()})
    measured = {target for targets, _ in spectra.values() for target in targets}
    untouched = [] if earlier is None else _without(earlier.groups, measured)
    share = largest_share([spectrum for _, spectrum in spectra.values()] + [Spectrum.of(each) for each in untouched])
    merged = _from_all({number: cut(group, share) for number, group in own.items()})
    return (*(merged[number] for number in sorted(merged)), *(cut(group, share) for group in untouched))


def _with_untrained(group: Group, before: GroupMemory | None, places: Mapping[str, InputPlace]) -> Group:
    """Return ``group`` with the weights that shared its input before and that this run does not train."""
    if before is None or not places.keys() & set(before.targets) <= set(group):
        return group
    return (*group, *(target for target in before.targets if target not in group))


def _without(groups: Sequence[GroupMemory], measured: Collection[str]) -> list[GroupMemory]:
    """Return ``groups`` without the weights ``measured``, where others are left."""
    left = [(group, tuple(target for target in group.targets if target not in measured)) for group in groups]
    return [replace(group, targets=targets) for group, targets in left if targets]


def _base_samples(model: PreTrainedModel, config: TrainingConfig, entered: Entered) -> Sequence[Sample]:
    """Return texts that stand for what the base model must keep."""
    max_tokens = min(config.max_seq_len, config.max_tokens_per_gpu)
    if config.calibration is None:
        tokenizer = load_tokenizer(config.model_path)
        tokens = min(SELF_SAMPLE_TOKENS, max_tokens)
        return sample_texts(model, tokenizer, SELF_SAMPLES, tokens, config.seed, entered)
    text = load_input_samples(
        Path(config.calibration),
        config.model_path,
        max_tokens,
        model.config.get_text_config().vocab_size,
        document_column=config.document_column_name,
    )
    return spread_samples(text, REMEMBERED_TOKENS)


def _kept(folder: Path) -> SubspaceMemory | None:
    """Return the memory in ``folder``; ``None`` if it is not whole, and then is to be measured again."""
    try:
        return SubspaceMemory.load(folder)
    except (ConfigError, MissingPathError) as error:
        logger.warning("%s Measuring the base model again.", error)
        return None


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _from_first(read: Callable[[], Result]) -> Result:
    """Let the first process read, and return in every process what it read."""
    outcome: list[Any] = [read() if _is_first() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0, group=_host_group())
    return outcome[0]


def _from_all(own: Mapping[int, Result]) -> dict[int, Result]:
    """Return in every process what all have."""
    if not dist.is_initialized():
        return dict(own)
    parts: list[Mapping[int, Result]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own, group=_host_group())
    return {number: value for part in parts for number, value in part.items()}


def _host_group() -> dist.ProcessGroup | None:
    """Return a group whose messages stay in the hosts' memory: a GPU has none to spare for them."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
