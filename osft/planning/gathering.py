"""When FSDP2 gathers the weights of a model, and the buffers it needs for it, on tensors without values.

Forward, a block's buffer of all shards lives until the next block has copied its own out of its. Backward, a block's
weights are there while the buffer of the block before is filled. The gradients of a block are copied into one float32
buffer to be summed, which lives until that of the next is needed. The weights outside the blocks stay whole from the
beginning of the forward pass to the end of the backward pass.

Source: torch.distributed.fsdp 2.13, _fully_shard/_fsdp_param_group.py.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from osft.planning.tracking import AllocationTracker


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What FSDP gathers together."""

    module: nn.Module
    tensors: Sequence[Tensor]
    """Whole, in the dtype in which they are gathered."""

    trained: Sequence[nn.Parameter]
    """Those of them whose gradients are summed."""

    @property
    def num_bytes(self) -> int:
        """What they take together."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(slots=True)
class _Buffers:
    """What is alive besides the weights themselves."""

    forward: Tensor | None = None
    prefetched: dict[int, Tensor] = field(default_factory=dict)
    reduced: Tensor | None = None


class Gathering:
    """Tells the tracker when the weights of a block are there."""

    def __init__(self, groups: Sequence[Group], world_size: int, tracker: AllocationTracker, part: str) -> None:
        """Take the groups in the order of the model; the last one is the weights outside the blocks."""
        *self.blocks, self.root = groups
        self.world_size = world_size
        self.tracker = tracker
        self.part = part
        self._buffers = _Buffers()
        self._in_backward = False
        self._unreduced: list[int] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Gather for one forward and backward pass in the block."""
        handles = []
        for number, group in enumerate(self.blocks):
            handles.append(group.module.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True))
            handles.append(group.module.register_forward_hook(partial(self._leave, number)))
        self._gather_forward(self.root)
        yield
        for number in list(self._unreduced):
            self._end_backward(number)
        self._reduce(self.root)
        for handle in handles:
            handle.remove()
        # The last block's buffer stays until the next forward pass.
        self._buffers.reduced = None
        self._in_backward = False

    def _enter(
        self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any] | None:
        # What checkpointing recomputes finds the weights there.
        if self._in_backward:
            return None
        self._gather_forward(self.blocks[number])
        return tree_map(partial(self._watch_input, number), (args, dict(kwargs)))

    def _watch_input(self, number: int, value: Any) -> Any:
        """Return ``value`` as a tensor of its own, whose gradient is ready when the block's backward pass is."""
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        value = value.view_as(value)
        value.register_hook(lambda _: self._end_backward(number))
        return value

    def _leave(self, number: int, _: nn.Module, __: Any, outputs: Any) -> None:
        if self._in_backward:
            return
        self.tracker.hide(self.blocks[number].tensors)
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda _: self._begin_backward(number))

    def _gather_forward(self, group: Group) -> None:
        buffer = self._buffer_of_shards(group)
        self._buffers.forward = None
        self.tracker.show(self.part, group.tensors)
        self._buffers.forward = buffer

    def _begin_backward(self, number: int) -> None:
        if number in self._unreduced:
            return
        self._in_backward = True
        self._unreduced.append(number)
        buffer = self._buffers.prefetched.pop(number, None)
        buffer = self._buffer_of_shards(self.blocks[number]) if buffer is None else buffer
        self.tracker.show(self.part, self.blocks[number].tensors)
        del buffer
        if number > 0:
            self._buffers.prefetched[number - 1] = self._buffer_of_shards(self.blocks[number - 1])

    def _end_backward(self, number: int) -> None:
        if number in self._unreduced:
            self._unreduced.remove(number)
            self._reduce(self.blocks[number])

    def _reduce(self, group: Group) -> None:
        """Let go of the weights, sum the gradients."""
        self.tracker.hide(group.tensors)
        self._buffers.reduced = None
        with_gradient = [parameter for parameter in group.trained if parameter.grad is not None]
        values = sum(map(self._padded_values, with_gradient))
        self._buffers.reduced = self._allocate(4 * values)
        for parameter in with_gradient:
            parameter.grad = None
        # This process's part of the sum, added to what there is.
        self._allocate(4 * values // self.world_size)

    def _buffer_of_shards(self, group: Group) -> Tensor:
        return self._allocate(sum(self._padded_values(tensor) * tensor.itemsize for tensor in group.tensors))

    def _padded_values(self, tensor: Tensor) -> int:
        rows = math.ceil(len(tensor) / self.world_size) * self.world_size
        return rows * tensor[0].numel()

    def _allocate(self, num_bytes: int) -> Tensor:
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device="meta")
        self.tracker.assign(self.part, [buffer])
        return buffer
