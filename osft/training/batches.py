"""Which samples make up a step, how a process cuts its share into micro-batches, and their tensors.

An effective batch is the same set of samples whatever the number of processes, and the loss is normalized by the
trained tokens of all of it, so neither processes nor micro-batches change what a step computes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osft.data.rows import IGNORED_LABEL
from osft.data.samples import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Samples that go through the model at once, padded to the longest on the right."""

    input_ids: Tensor
    """``[samples, tokens]``, int64."""

    attention_mask: Tensor
    """``[samples, tokens]``, int64, 0 on padding."""

    labels: Tensor
    """``[samples, tokens]``, int64, ``IGNORED_LABEL`` where nothing is trained."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same batch on ``device``."""
        return MicroBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def count_steps(num_samples: int, effective_batch_size: int, num_epochs: int) -> int:
    """Return the optimizer steps of a run; the last batch of an epoch may be smaller."""
    return math.ceil(num_samples / effective_batch_size) * num_epochs


def effective_batches(num_samples: int, effective_batch_size: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the sample indices of each step of one epoch, in an order that seed and epoch determine."""
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    for start in range(0, num_samples, effective_batch_size):
        yield order[start : start + effective_batch_size].tolist()


def share_of_process(samples: Sequence[Sample], global_rank: int, world_size: int) -> list[Sample]:
    """Return this process's part of an effective batch; dealing by length gives every process a like load."""
    by_length = sorted(samples, key=lambda sample: len(sample.input_ids), reverse=True)
    return by_length[global_rank::world_size]


def micro_batches(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Cut ``samples``, longest first, into groups that stay within ``max_tokens`` when padded to their longest."""
    groups: list[list[Sample]] = []
    for sample in samples:
        # The first of a group is its longest, so it alone determines the padded length.
        if groups and len(groups[-1][0].input_ids) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Pad ``samples`` on the right into one micro-batch."""
    longest = max(len(sample.input_ids) for sample in samples)
    input_ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        input_ids[row, :length] = torch.from_numpy(sample.input_ids)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.from_numpy(sample.labels)
    return MicroBatch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def count_loss_tokens(samples: Sequence[Sample]) -> int:
    """Return how many tokens of ``samples`` are trained; the first of a sample has nothing that predicts it."""
    return sum(int((sample.labels[1:] != IGNORED_LABEL).sum()) for sample in samples)
