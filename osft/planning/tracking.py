"""Counts what tensors take while code runs, by what they are for, without the tensors holding any values.

Tensors on PyTorch's device "meta" have a shape and a dtype and take no memory. Run on them, the engine's own code says
what it would allocate, so a plan cannot drift from it. It takes seconds: nothing is computed.

Source: https://docs.pytorch.org/docs/stable/meta.html
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class AllocationTracker(TorchDispatchMode):
    """While active, keeps the sum of all live storages on the device "meta", and the largest sum of each phase."""

    def __init__(self) -> None:
        """Start from nothing."""
        super().__init__()
        self.peaks: dict[str, Mapping[str, int]] = {}
        """Bytes by part at the largest sum of each phase, in the order of the phases."""
        self.parts_by_width: dict[int, str] = {}
        """What a new tensor is for by the size of its last dimension, before what the phase says."""
        self._phase = ""
        self._part = ""
        self._bytes_by_part: Counter[str] = Counter()
        self._live: dict[int, tuple[str, int]] = {}

    @contextmanager
    def phase(self, name: str, part: str) -> Iterator[None]:
        """For the length of the block, note peaks under ``name`` and what is new as ``part``."""
        outer = self._phase, self._part
        self._phase, self._part = name, part
        self._note_peak()
        yield
        self._phase, self._part = outer

    @property
    def live_bytes(self) -> int:
        """What is there now, of all parts."""
        return self._bytes_by_part.total()

    def assign(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count ``tensors`` as ``part`` from now on."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._live:
                old, num_bytes = self._live[key]
                self._bytes_by_part[old] -= num_bytes
                self._bytes_by_part[part] += num_bytes
                self._live[key] = (part, num_bytes)

    def hide(self, tensors: Iterable[Tensor]) -> None:
        """Count ``tensors`` as nothing from now on: this process does not hold them."""
        self._set_size(tensors, None, is_there=False)

    def show(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count ``tensors``, which were hidden, as ``part`` from now on."""
        self._set_size(tensors, part, is_there=True)
        self._note_peak()

    def _set_size(self, tensors: Iterable[Tensor], part: str | None, *, is_there: bool) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._live:
                old_part, old_bytes = self._live[storage._cdata]
                part, num_bytes = part or old_part, storage.nbytes() if is_there else 0
                self._bytes_by_part[old_part] -= old_bytes
                self._bytes_by_part[part] += num_bytes
                self._live[storage._cdata] = (part, num_bytes)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.is_meta:
                self._see(output)
        return outputs

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key not in self._live and num_bytes > 0:
            part = self.parts_by_width.get(tensor.shape[-1], self._part) if tensor.ndim else self._part
            self._live[key] = (part, num_bytes)
            self._bytes_by_part[part] += num_bytes
            weakref.finalize(storage, self._forget, key)
            self._note_peak()

    def _forget(self, key: int) -> None:
        part, num_bytes = self._live.pop(key)
        self._bytes_by_part[part] -= num_bytes

    def _note_peak(self) -> None:
        known = self.peaks.get(self._phase, {})
        if self._phase and self._bytes_by_part.total() > sum(known.values()):
            self.peaks[self._phase] = dict(self._bytes_by_part)


class AssumedValues(TorchDispatchMode):
    """Answers what tensors without values cannot.

    Every question about values is answered yes or one, and every mask is full: so every token is trained, which is the
    most that the code can need. What goes to the host, or is drawn there, takes no memory.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWN_ON_HOST:
            return _placeholder(args[0], kwargs["dtype"])
        if func in ANSWERS and args[0].is_meta:
            return ANSWERS[func](*args, **kwargs)
        if func in INDEXED:
            args = (args[0], [index for given in args[1] for index in _without_masks(given)], *args[2:])
        return func(*args, **kwargs)


def _placeholder(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the host that has its shape from one value."""
    return torch.zeros((), dtype=dtype).expand(shape)


def _one(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _copy(tensor: Tensor, **options: Any) -> Tensor:
    target = options.get("device")
    if target is None or torch.device(target).type == "meta":
        return aten._to_copy.default(tensor, **options)
    return _placeholder(tensor.shape, options.get("dtype") or tensor.dtype)


def _without_masks(index: Tensor | None) -> list[Tensor | None]:
    """Return ``index``; a mask as the positions of its elements, a tensor a dimension."""
    return [*_positions(index)] if index is not None and index.dtype == torch.bool else [index]


def _positions(mask: Tensor) -> list[Tensor]:
    return [mask.new_empty(mask.numel(), dtype=torch.int64) for _ in mask.shape]


def _grouped_mm(
    left: Tensor,
    right: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the shape that experts compute; PyTorch's own answer refuses all but bfloat16, its kernels do not."""
    del bias
    groups = [] if offs is None or left.ndim + right.ndim == 5 else [len(offs)]
    if left.ndim == right.ndim == 3:
        groups = [len(left)]
    return left.new_empty([*groups, left.shape[-2], right.shape[-1]], dtype=out_dtype)


DRAWN_ON_HOST = (aten.randn.generator, aten.rand.generator)
ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.equal.default: lambda *_: True,
    aten._local_scalar_dense.default: _one,
    aten.nonzero.default: lambda mask: torch.stack(_positions(mask), dim=1),
    aten._to_copy.default: _copy,
    aten._grouped_mm.default: _grouped_mm,
}
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class FusedAttention(TorchFunctionMode):
    """Makes PyTorch's attention on the device "meta" the fused kernel that CPUs and GPUs have.

    On "meta" it would hold a matrix of all pairs of tokens. The kernel for CPUs keeps what one for GPUs does: query,
    key, value, output and a number a row.
    """

    def __init__(self, *, with_dropout: bool) -> None:
        """With ``with_dropout`` the kernel also takes dropout, as on a GPU; PyTorch has none for CPUs that does."""
        super().__init__()
        self.with_dropout = with_dropout

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        counted = func is F.scaled_dot_product_attention and args[0].is_meta
        if counted and (self.with_dropout or kwargs.get("dropout_p", 0.0) == 0):
            return _attend_fused(*args, **kwargs)
        return func(*args, **kwargs)


def _attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # Dropout is drawn anew in the backward pass.
    del enable_gqa, dropout_p
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # The kernels add their mask.
        attn_mask = torch.where(attn_mask, query.new_zeros(()), query.new_full((), -torch.inf))
    output, _ = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )
    return output
