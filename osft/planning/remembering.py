"""What a run holds while it measures the subspace memory that it leaves, on tensors without values.

After the last step gradients and moments are gone, and beside the trained model lie the covariances of a round
(:mod:`osft.subspace.memory.measuring`); then one after the other is decomposed in float64. Planned is the round that a
run takes at least: on a GPU it is larger where there is room. What a first link measures of its base model, before it
trains, is the same beside fewer tensors, and so never the peak; the texts that it samples itself take less.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from osft.config import TrainingConfig
from osft.planning.tracking import AllocationTracker
from osft.subspace.inputs import InputPlace, covariances_at, first_input, run_text
from osft.subspace.memory.chain import REMEMBERED_TOKENS
from osft.subspace.memory.groups import Group
from osft.subspace.memory.measuring import ROUND_BYTES, group_owners, rounds
from osft.subspace.memory.memory import GroupMemory
from osft.subspace.memory.merging import LIMIT_BYTES, add_covariance

# Float64 matrices of a decomposition: what is decomposed, its eigenvectors, and the work space of LAPACK's and
# cuSOLVER's syevd, which is twice as much.
EIGH_MATRICES = 4


class Remembering:
    """The measurement of the memory, as the first process of a run does it, which has the most."""

    def __init__(
        self, model: PreTrainedModel, places: Mapping[str, InputPlace], config: TrainingConfig, world_size: int
    ) -> None:
        """Find the groups of weights that share an input, before anything is attached to ``model``."""
        self.places = places
        self.config = config
        self.groups = _find_groups(model, places)
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
        firsts = [self.groups[number][0] for number in self._largest_round()]
        with with_weights:
            covariances = covariances_at(model, {name: self.places[name] for name in firsts}, [self._batch()])
        tracker.assign(part, covariances.values())
        if not covariances:
            # There are fewer groups than processes.
            return
        largest = max(covariances, key=lambda name: len(covariances[name]))
        add_covariance((largest,), covariances[largest], self._earlier(len(covariances[largest])))
        # On tensors without values eigh asks for no work space.
        covariances[largest].new_empty(EIGH_MATRICES, *covariances[largest].shape, dtype=torch.float64)

    def _largest_round(self) -> list[int]:
        """Return the process's own groups of the round in which they take most."""
        found = rounds(self.inputs, self.owners, ROUND_BYTES)
        own = [[number for number in numbers if self.owners[number] == 0] for numbers in found]
        return max(own, key=lambda numbers: sum(self.inputs[number] ** 2 for number in numbers))

    def _batch(self) -> Tensor:
        """Return a batch of samples ``[samples, tokens]``, as large as there may be."""
        length = min(self.config.max_seq_len, self.config.max_tokens_per_gpu)
        tokens = min(self.config.max_tokens_per_gpu, REMEMBERED_TOKENS)
        return torch.empty(max(1, tokens // length), length, dtype=torch.int64, device="meta")

    def _earlier(self, inputs: int) -> GroupMemory | None:
        """Return what a memory that is full holds of a group, if all groups have their equal share of it."""
        if self.config.subspace_memory is None and self.config.base_memory == "weights":
            return None
        share = self.memory_bytes / sum(map(_most_bytes, self.inputs))
        rank = max(1, round(share * inputs))
        return GroupMemory(
            targets=(),
            directions=torch.empty(inputs, rank, dtype=torch.bfloat16, device="meta"),
            eigenvalues=torch.empty(rank, device="meta"),
            residual=0.0,
            needed=(),
        )


def _most_bytes(inputs: int) -> int:
    """Return what all directions and eigenvalues of an input take."""
    return inputs * (inputs * torch.bfloat16.itemsize + torch.float32.itemsize)


def _find_groups(model: PreTrainedModel, places: Mapping[str, InputPlace]) -> list[Group]:
    """Do as :func:`osft.subspace.memory.groups.find_groups`, which tells inputs by addresses: here there are none."""
    inputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, place in places.items():
            for module in place.modules:
                note = partial(_note, inputs, name)
                hooks.enter_context(model.get_submodule(module).register_forward_pre_hook(note, with_kwargs=True))
        run_text(model, [torch.empty(1, 1, dtype=torch.int64, device="meta")])
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in places:
        # All of them are alive still, so that no two have the same storage by chance.
        groups[inputs[name].untyped_storage()._cdata if name in inputs else name].append(name)
    return [tuple(group) for group in groups.values()]


def _note(
    inputs: dict[str, Tensor], name: str, module: nn.Module, arguments: Sequence[Any], named: dict[str, Any]
) -> None:
    """Keep what a weight is called with first; a forward pre-hook."""
    inputs.setdefault(name, first_input(tuple(arguments), named))
