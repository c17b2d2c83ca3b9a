"""Which samples make up a step, how a process cuts its share into micro-batches, and their tensors.

An effective batch is the same set of samples whatever the number of processes, and the loss is normalized by the
trained tokens of all of it, so neither processes nor micro-batches change what a step computes. A micro-batch is
packed where the model allows it: its samples stand in one row, one behind the other, and no token is padding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osft.data.rows import IGNORED_LABEL
from osft.data.samples import Sample


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


def effective_batches(num_samples: int, effective_batch_size: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the sample indices of each step of one epoch, in an order that seed and epoch determine."""
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    for start in range(0, num_samples, effective_batch_size):
        yield order[start : start + effective_batch_size].tolist()


def share_of_process(samples: Sequence[Sample], global_rank: int, world_size: int) -> list[Sample]:
    """Return this process's part of an effective batch, longest first.

    Each sample, the longest first, goes to the process that has the fewest tokens so far, so no two processes are
    further apart than the longest sample. Every process computes the same shares.
    """
    shares: list[list[Sample]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for sample in _longest_first(samples):
        lightest = tokens.index(min(tokens))
        shares[lightest].append(sample)
        tokens[lightest] += len(sample.input_ids)
    return shares[global_rank]


def micro_batches(samples: Sequence[Sample], max_tokens: int, *, packed: bool) -> list[list[Sample]]:
    """Cut ``samples`` into few groups that :func:`collate` makes no larger than ``max_tokens``.

    Packed, by first-fit decreasing, which takes at most 11/9 of the fewest possible groups, and one more (Dosa 2007).

    Args:
        samples: none longer than ``max_tokens``.
        max_tokens: most tokens of a group, padding included.
        packed: as in :func:`collate`.
    """
    if packed:
        return _first_fit(_longest_first(samples), max_tokens)
    groups: list[list[Sample]] = []
    for sample in _longest_first(samples):
        # The first of a group is its longest, so it alone determines the padded length.
        if groups and len(groups[-1][0].input_ids) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def _longest_first(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: len(sample.input_ids), reverse=True)


def _first_fit(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    groups: list[list[Sample]] = []
    free_tokens: list[int] = []
    for sample in samples:
        length = len(sample.input_ids)
        fitting = next((index for index, free in enumerate(free_tokens) if free >= length), None)
        if fitting is None:
            groups.append([sample])
            free_tokens.append(max_tokens - length)
        else:
            groups[fitting].append(sample)
            free_tokens[fitting] -= length
    return groups


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


def count_loss_tokens(samples: Sequence[Sample]) -> int:
    """Return how many tokens of ``samples`` are trained; the first of a sample has nothing that predicts it."""
    return sum(int((sample.labels[1:] != IGNORED_LABEL).sum()) for sample in samples)
