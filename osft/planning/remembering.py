"""What a run holds while it measures the subspace memory that it leaves, on tensors without values.

After the last step gradients and moments are gone, and beside the trained model lie the covariances of a round
(:mod:`osft.subspace.memory.measuring`); then one after the other is decomposed in float64. Planned is the round that a
run takes at least: on a GPU, which gives what it has free, no more than the largest covariance. What a first link
measures of its base model, before it trains, is the same beside fewer tensors, and so never the peak; the texts that it
samples itself take less.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.planning.tracking import AllocationTracker
from osft.subspace.inputs import InputPlace, covariances_at
from osft.subspace.memory.chain import REMEMBERED_TOKENS
from osft.subspace.memory.groups import find_groups
from osft.subspace.memory.measuring import (
    DECOMPOSITION_MATRICES,
    ROUND_BYTES,
    group_owners,
    round_bytes_within,
    rounds,
)
from osft.subspace.memory.merging import LIMIT_BYTES


class Remembering:
    """The measurement of the memory, as the first process of a run does it, which has the most."""

    def __init__(
        self,
        model: PreTrainedModel,
        places: Mapping[str, InputPlace],
        config: TrainingConfig,
        world_size: int,
        *,
        on_gpu: bool,
    ) -> None:
        """Find the groups of weights that share an input, before anything is attached to ``model``."""
        self.places = places
        self.config = config
        self.on_gpu = on_gpu
        self.held_bytes = 0
        """What the device holds while the memory is measured, beside covariances; once it is."""
        self.groups = find_groups(model, places, torch.empty(1, 1, dtype=torch.int64, device="meta"))
        self.inputs = [places[group[0]].inputs for group in self.groups]
        self.owners = group_owners(self.inputs, world_size)

    @property
    def memory_bytes(self) -> int:
        """What a memory takes at most, on disk as well as loaded."""
        return min(LIMIT_BYTES, sum(map(_most_bytes, self.inputs)))

    @property
    def host_bytes(self) -> int:
        """What lies in the host's memory at most: the memory so far, and the own groups before they are cut to it."""
        own = (size for size, owner in zip(self.inputs, self.owners, strict=True) if owner == 0)
        return self.memory_bytes + sum(map(_most_bytes, own))

    def count_passes(self, capacity_bytes: int) -> int:
        """Return in how many passes over the text a GPU measures them that has so much memory."""
        return len(rounds(self.inputs, self.owners, self._round_bytes(capacity_bytes - self.held_bytes)))

    def measure(
        self, model: PreTrainedModel, tracker: AllocationTracker, part: str, with_weights: AbstractContextManager[None]
    ) -> None:
        """Take the largest round, ``part`` of the present phase, and decompose its largest covariance.

        Args:
            model: as the run has trained it.
            tracker: counts.
            part: what the covariances are.
            with_weights: the model's weights are there inside.
        """
        self.held_bytes = tracker.live_bytes
        firsts = [self.groups[number][0] for number in self._largest_round()]
        with with_weights:
            covariances = covariances_at(model, {name: self.places[name] for name in firsts}, [self._batch()])
        tracker.assign(part, covariances.values())
        if not covariances:
            # There are fewer groups than processes.
            return
        largest = max(covariances.values(), key=len)
        largest.new_empty(DECOMPOSITION_MATRICES, *largest.shape, dtype=torch.float64)

    def _largest_round(self) -> list[int]:
        """Return the process's own groups of the round in which they take most."""
        found = rounds(self.inputs, self.owners, self._round_bytes(0))
        own = [[number for number in numbers if self.owners[number] == 0] for numbers in found]
        return max(own, key=lambda numbers: sum(self.inputs[number] ** 2 for number in numbers))

    def _round_bytes(self, free_bytes: int) -> int:
        """Return what a round takes where so much is free, which a CPU does not ask for."""
        return round_bytes_within(free_bytes, max(self.inputs, default=0)) if self.on_gpu else ROUND_BYTES

    def _batch(self) -> Tensor:
        """Return a batch of samples ``[samples, tokens]``, as large as there may be."""
        length = min(self.config.max_seq_len, self.config.max_tokens_per_gpu)
        tokens = min(self.config.max_tokens_per_gpu, REMEMBERED_TOKENS)
        return torch.empty(max(1, tokens // length), length, dtype=torch.int64, device="meta")


def _most_bytes(inputs: int) -> int:
    """Return what all directions and eigenvalues of an input take."""
    return inputs * (inputs * torch.bfloat16.itemsize + torch.float32.itemsize)
