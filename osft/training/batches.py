"""Which samples make up a step, how a process cuts its share into micro-batches, and their tensors.

An effective batch is the same set of samples whatever the number of processes, and the loss is normalized by the
trained tokens of all of it, so neither processes nor micro-batches change what a step computes. A micro-batch is
packed where the model allows it: its samples stand in one row, one behind the other, and no token is padding.

All of that is planned from the samples' lengths and counts of trained tokens. Their tokens are read when a micro-batch
is collated, so a plan of a whole epoch costs no more than its indices.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osft.config import TrainingConfig
from osft.data.samples import Integers, Sample, Samples
from osft.data.validation.rows import IGNORED_LABEL
from osft.processes.group import Processes

# What a micro-batch costs however few tokens it has, in tokens: 50 of a model of 4 layers on one CPU core; on a GPU the
# starts of its kernels and the passes over all gradients come to some hundreds. With lengths of a mean of 500 padding
# falls from 50% to 15% of 8 samples and from 31% to 11% of 32.
MICRO_BATCH_COST_TOKENS = 512
IDLE_TOKENS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """What one optimizer step takes, told by the indices of the samples."""

    samples: Integers
    """``[samples]``: those of the effective batch, of all processes."""

    micro_batches: tuple[Integers, ...]
    """Each ``[samples]``: this process's share of them, in the order in which they are collated. Every process has as
    many, since all gather the weights together; one with less to do has empty ones at the end."""

    tokens: int
    """Tokens of the effective batch."""

    loss_tokens: int
    """Those of them that are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Where the samples of a packed row lie."""

    position_ids: Tensor
    """``[1, tokens]``, int64, from 0 in each sample."""

    bounds: Tensor
    """``[samples + 1]``, int32: where each sample starts, and where the last one ends."""

    longest_tokens: int
    """Tokens of the longest sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Samples that go through the model at once: packed into one row, or padded on the right to the longest."""

    input_ids: Tensor
    """``[rows, tokens]``, int64; a packed batch has one row, a padded one a row for each sample."""

    labels: Tensor
    """``[rows, tokens]``, int64, ``IGNORED_LABEL`` where nothing is trained: the first token of a sample never is."""

    attention_mask: Tensor | None = None
    """``[rows, tokens]``, int64, 0 on padding; ``None`` in a packed batch, which has none."""

    packing: Packing | None = None
    """``None`` in a padded batch."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same batch on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        packing = self.packing
        return MicroBatch(
            input_ids=move(self.input_ids),
            labels=move(self.labels),
            attention_mask=None if self.attention_mask is None else move(self.attention_mask),
            packing=packing
            and Packing(
                position_ids=move(packing.position_ids),
                bounds=move(packing.bounds),
                longest_tokens=packing.longest_tokens,
            ),
        )

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of a model's forward; those of a packed batch are transformers' for varlen."""
        if self.packing is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {
            "input_ids": self.input_ids,
            "position_ids": self.packing.position_ids,
            "cu_seq_lens_q": self.packing.bounds,
            "cu_seq_lens_k": self.packing.bounds,
            "max_length_q": self.packing.longest_tokens,
            "max_length_k": self.packing.longest_tokens,
        }


def count_steps(num_samples: int, effective_batch_size: int, num_epochs: int) -> int:
    """Return the optimizer steps of a run; the last batch of an epoch may be smaller."""
    return math.ceil(num_samples / effective_batch_size) * num_epochs


def plan_epoch(
    samples: Samples, config: TrainingConfig, processes: Processes, *, epoch: int, packed: bool
) -> Iterator[StepPlan]:
    """Yield what each step of one epoch takes; every process gets the same steps, and its own micro-batches of them.

    Args:
        samples: none longer than ``max_tokens_per_gpu``.
        config: its effective batch size, its seed and its tokens per GPU.
        processes: this process and how many there are.
        epoch: from 0.
        packed: as in :func:`collate`.
    """
    batches = effective_batches(len(samples), config.effective_batch_size, seed=config.seed, epoch=epoch)
    for batch in batches:
        lengths = samples.lengths[batch]
        shares = shares_of_processes(lengths, processes.world_size)
        groups = [micro_batches(lengths[share], config.max_tokens_per_gpu, packed=packed) for share in shares]
        own = [batch[shares[processes.global_rank][group]] for group in groups[processes.global_rank]]
        idle = max(len(each) for each in groups) - len(own)
        yield StepPlan(
            samples=batch,
            micro_batches=(*own, *[batch[:0]] * idle),
            tokens=int(lengths.sum()),
            loss_tokens=int(samples.trained_tokens[batch].sum()),
        )


def effective_batches(num_samples: int, effective_batch_size: int, *, seed: int, epoch: int) -> Iterator[Integers]:
    """Yield the sample indices of each step of one epoch, in an order that seed and epoch determine."""
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    for start in range(0, num_samples, effective_batch_size):
        yield order[start : start + effective_batch_size]


def shares_of_processes(lengths: Integers, world_size: int) -> list[Integers]:
    """Return each process's part of an effective batch, as indices into ``lengths``, longest first.

    Each sample, the longest first, goes to the process that has the fewest tokens so far, so no two processes are
    further apart than the longest sample. Every process computes the same shares.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for index in _longest_first(lengths):
        lightest = tokens.index(min(tokens))
        tokens[lightest] += int(lengths[index])
        shares[lightest].append(index)
    return [np.array(share, dtype=np.int64) for share in shares]


def micro_batches(lengths: Integers, max_tokens: int, *, packed: bool) -> list[list[int]]:
    """Cut samples into groups that :func:`collate` makes no larger than ``max_tokens``.

    Packed, into few, by first-fit decreasing, which takes at most 11/9 of the fewest possible groups, and one more
    (Dosa 2007). Padded, into groups of like lengths that take the least time.

    Args:
        lengths: ``[samples]``, none above ``max_tokens``.
        max_tokens: most tokens of a group, padding included.
        packed: as in :func:`collate`.

    Returns:
        Indices into ``lengths``, the longest of a group first.
    """
    return _first_fit(lengths, max_tokens) if packed else _like_lengths(lengths, max_tokens)


def _longest_first(lengths: Integers) -> list[int]:
    """Return the indices of ``lengths``, of equal ones the first one first."""
    return np.argsort(-lengths, kind="stable").tolist()


def _first_fit(lengths: Integers, max_tokens: int) -> list[list[int]]:
    groups: list[list[int]] = []
    free_tokens: list[int] = []
    for index in _longest_first(lengths):
        length = int(lengths[index])
        fitting = next((number for number, free in enumerate(free_tokens) if free >= length), None)
        if fitting is None:
            groups.append([index])
            free_tokens.append(max_tokens - length)
        else:
            groups[fitting].append(index)
            free_tokens[fitting] -= length
    return groups


def _like_lengths(lengths: Integers, max_tokens: int) -> list[list[int]]:
    """Cut the samples, longest first, where the sum of padded tokens and the groups' fixed costs is least.

    By dynamic programming over the place of the last cut: a group's first sample is its longest, so it alone determines
    the padded length.
    """
    order = np.array(_longest_first(lengths), dtype=np.int64)
    longest = lengths[order]
    costs = np.zeros(len(order) + 1, dtype=np.int64)
    starts = np.zeros(len(order) + 1, dtype=np.int64)
    first = 0
    for end in range(1, len(order) + 1):
        while longest[first] * (end - first) > max_tokens:
            first += 1
        padded = longest[first:end] * np.arange(end - first, 0, -1)
        totals = costs[first:end] + padded + MICRO_BATCH_COST_TOKENS
        starts[end] = first + totals.argmin()
        costs[end] = totals.min()
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[starts[end] : end].tolist())
        end = int(starts[end])
    return groups[::-1]


def idle_sample(sample: Sample) -> Sample:
    """Return what goes through the model of a process that has nothing to do while others have: it trains nothing.

    It begins as a real sample does: a norm without an epsilon has no gradient at tokens whose embedding is zero.
    """
    ids = sample.input_ids[:IDLE_TOKENS]
    return Sample(input_ids=ids, labels=np.full_like(ids, IGNORED_LABEL), row=sample.row)


def collate(samples: Sequence[Sample], *, packed: bool) -> MicroBatch:
    """Make one micro-batch of ``samples``, in their order: one row without padding, or padded rows."""
    return _pack(samples) if packed else _pad(samples)


def _pack(samples: Sequence[Sample]) -> MicroBatch:
    lengths = [len(sample.input_ids) for sample in samples]
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate([sample.input_ids for sample in samples]))[None].long(),
        labels=torch.from_numpy(np.concatenate([_predicted_labels(sample) for sample in samples]))[None].long(),
        packing=Packing(
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            bounds=torch.tensor([0, *lengths]).cumsum(0).int(),
            longest_tokens=max(lengths),
        ),
    )


def _pad(samples: Sequence[Sample]) -> MicroBatch:
    longest = max(len(sample.input_ids) for sample in samples)
    input_ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        input_ids[row, :length] = torch.from_numpy(sample.input_ids)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.from_numpy(_predicted_labels(sample))
    return MicroBatch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def _predicted_labels(sample: Sample) -> np.ndarray:
    """Return the labels without the first: in a packed row the token before it is another sample's."""
    labels = sample.labels.copy()
    labels[:1] = IGNORED_LABEL
    return labels
