"""Which weights share their inputs, found by looking at what they are called with.

Queries, keys and values are multiplied with one input, gates and their counterparts with another: one covariance
serves all of them. No name says so for every family. In a forward pass the same tensor comes to each of them: the same
place in the same storage, and not written to in between. Tensors without values have storages too, so a plan finds the
same groups.
"""

import weakref
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from osft.subspace.inputs import InputPlace, first_input, run_text

Group = tuple[str, ...]
"""Names of weights that share an input, in the order of the model."""


def find_groups(model: PreTrainedModel, places: Mapping[str, InputPlace], batch: Tensor) -> tuple[Group, ...]:
    """Return which weights share their inputs; one forward pass.

    Args:
        model: base or trained; one that is spread over processes runs where its weights are whole.
        places: by the names of the weights.
        batch: ``[samples, tokens]``, without padding; on the device "meta" for a model that is there.

    Returns:
        Groups that have every weight once, in the order of the model. Weights that ``batch`` does not reach, such as
        an expert that no token chooses, are groups of their own.
    """
    seen = _SeenInputs()
    numbers: dict[str, list[int]] = {name: [] for name in places}
    with ExitStack() as hooks:
        for name, place in places.items():
            for module in place.modules:
                note = partial(_note, seen, numbers[name])
                hooks.enter_context(model.get_submodule(module).register_forward_pre_hook(note, with_kwargs=True))
        run_text(model, [batch])
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, calls in numbers.items():
        groups[tuple(calls) or name].append(name)
    return tuple(tuple(group) for group in groups.values())


def _note(
    seen: "_SeenInputs", numbers: list[int], module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Write down which input a weight is called with; a forward pre-hook."""
    numbers.append(seen.number_of(first_input(arguments, named)))


class _SeenInputs:
    """Numbers the inputs of a forward pass, the same for the same place in the same storage."""

    def __init__(self) -> None:
        self._count = 0
        self._alive: dict[tuple[Any, ...], tuple[weakref.ref[Tensor], int]] = {}

    def number_of(self, inputs: Tensor) -> int:
        """Return the number of an input; a view of an earlier one has the same."""
        storage = inputs.untyped_storage()._cdata
        key = (storage, inputs.storage_offset(), inputs.numel(), inputs.shape[-1], inputs._version)
        earlier, number = self._alive.get(key, (None, 0))
        # The memory of one that is gone may be another's now.
        if earlier is None or earlier() is None:
            self._count += 1
            number = self._count
            self._alive[key] = (weakref.ref(inputs), number)
        return number
