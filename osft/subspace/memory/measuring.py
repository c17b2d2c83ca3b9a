"""The covariances of a model's inputs, one for each group of weights that share them, in little memory at a time.

All covariances of an 8-billion-parameter model take 33 GB in float32. They are measured in rounds, each of which is one
forward pass over the text: on a CPU of :data:`ROUND_BYTES` for each process, on a GPU of what is free there. Such a
model on one GPU of 80 GB needs one pass beside the base's weights, and after a training at ratio 0.25 two, or with
``save_memory`` one. A GPU that is nearly full takes more of them, with as little as the largest covariance in each. In
a run of several processes each sums up its share of the groups; the forward passes all take together.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from osft.data.samples import Sample, token_lengths
from osft.subspace.inputs import InputPlace, covariances_at, equal_length_batches
from osft.subspace.memory.groups import Group, find_groups

# On a CPU, beside a model that has just been trained; the largest covariance of the usual 8-billion-parameter models
# has 0.8 GB.
ROUND_BYTES = 8 * 10**9
BYTES_PER_VALUE = 4
# Of what a GPU has free; the rest is for the activations of the pass and the gaps of the allocator.
ROUND_SHARE = 0.8
# Matrices as large as a covariance, in float64, that its decomposition holds beside it: itself, and the memory so far
# while it is put together again, or the eigenvectors and the work space of LAPACK's and cuSOLVER's syevd, which is
# twice as much.
DECOMPOSITION_MATRICES = 5
BYTES_PER_EXACT_VALUE = 8

Call = Callable[..., Any]
"""Calls a function with arguments where the weights of a model are there."""


def spread_samples(samples: Sequence[Sample], max_tokens: int) -> list[Sample]:
    """Return samples at even distances over the whole, as many as have ``max_tokens`` together, at least one."""
    lengths = token_lengths(samples)
    count = max(1, min(len(samples), int(max_tokens / max(1.0, float(lengths.mean())))))
    chosen = np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))
    return [samples[index] for index in chosen.tolist()]


def measure_groups(
    model: PreTrainedModel,
    places: Mapping[str, InputPlace],
    samples: Sequence[Sample],
    max_tokens_at_once: int,
    call: Call,
) -> Iterator[tuple[int, Group, Tensor | None]]:
    """Yield number, weights and covariance of each group of weights that share an input.

    Every process must exhaust this, and gets the same groups in the same order; ``None`` in place of a covariance that
    is another process's to work on, or where no token comes by. A covariance is freed once its user lets go of it.

    Args:
        model: base or trained.
        places: by the names of the weights, where their inputs come in.
        samples: the text.
        max_tokens_at_once: most tokens that are taken through the model at once.
        call: calls a function where the weights are whole.
    """
    batches = list(equal_length_batches(samples, max_tokens_at_once))
    groups = call(find_groups, model, places, batches[0])
    process, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    inputs = [places[group[0]].inputs for group in groups]
    owners = group_owners(inputs, world_size)
    for numbers in rounds(inputs, owners, _round_bytes(max(inputs, default=0), model.device)):
        mine = [number for number in numbers if owners[number] == process]
        firsts = {groups[number][0]: places[groups[number][0]] for number in mine}
        covariances = call(covariances_at, model, firsts, batches)
        for number in numbers:
            yield number, groups[number], covariances.pop(groups[number][0], None)


def group_owners(inputs: Sequence[int], world_size: int) -> list[int]:
    """Return which process measures each group; groups of one size are dealt out in turn.

    Args:
        inputs: size of the inputs of each group.
        world_size: processes of the run.
    """
    owners = [0] * len(inputs)
    for turn, number in enumerate(sorted(range(len(inputs)), key=lambda number: -inputs[number])):
        owners[number] = turn % world_size
    return owners


def rounds(inputs: Sequence[int], owners: Sequence[int], round_bytes: int) -> list[list[int]]:
    """Return the numbers of the groups that are measured in each round, the same in every process.

    Args:
        inputs: size of the inputs of each group.
        owners: the process that measures each.
        round_bytes: what the covariances of one process may take in a round; a larger one has a round of its own.
    """
    found: list[list[int]] = [[]]
    taken: Counter[int] = Counter()
    for number, (size, owner) in enumerate(zip(inputs, owners, strict=True)):
        needed = size**2 * BYTES_PER_VALUE
        if taken[owner] and taken[owner] + needed > round_bytes:
            found.append([])
            taken.clear()
        found[-1].append(number)
        taken[owner] += needed
    return found


def round_bytes_within(free_bytes: int, largest_inputs: int) -> int:
    """Return what the covariances of one process may take in a round on a GPU, at least the largest one.

    Args:
        free_bytes: what the GPU has free.
        largest_inputs: size of the largest input; its covariance is decomposed beside those of the whole round.
    """
    decomposition_bytes = DECOMPOSITION_MATRICES * largest_inputs**2 * BYTES_PER_EXACT_VALUE
    return max(largest_inputs**2 * BYTES_PER_VALUE, int(ROUND_SHARE * free_bytes) - decomposition_bytes)


def _round_bytes(largest_inputs: int, device: torch.device) -> int:
    """Return what a round may take, the same in every process; every process must call this."""
    if device.type != "cuda":
        return ROUND_BYTES
    unused_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free_bytes = torch.tensor(torch.cuda.mem_get_info(device)[0] + unused_bytes, device=device)
    if dist.is_initialized():
        dist.all_reduce(free_bytes, op=dist.ReduceOp.MIN)
    return round_bytes_within(int(free_bytes), largest_inputs)
