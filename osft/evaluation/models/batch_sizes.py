"""How many sequences of a length go through the model at once, when the user says ``"auto"``.

lm-eval tries this anew for each list of requests (five passes of the largest batch that fits), which for the 57 tasks
of mmlu is 57 times. Here a size is found once for each length rounded up to a power of two, and kept. It depends on
the length alone, not on what ran before, so that a model measured in another order is batched the same way.
"""

from collections.abc import Callable

import torch

LARGEST_BATCH = 64
"""Sequences; lm-eval's own limit."""

CPU_TOKENS = 4096
"""Tokens in a batch on a CPU, which gains nothing from larger ones, and where running out of memory kills the step."""


class BatchSizes:
    """The number of sequences for each length, found on first use."""

    def __init__(self, try_batch: Callable[[int, int], object] | None) -> None:
        """Make an empty memory.

        Args:
            try_batch: runs (number of sequences, tokens in each) through the model, and raises
                ``torch.OutOfMemoryError`` where that does not fit; None on a CPU.
        """
        self._try_batch = try_batch
        self._found: dict[int, int] = {}

    def size_for(self, num_tokens: int) -> int:
        """Return how many sequences of up to ``num_tokens`` go at once: a power of two up to ``LARGEST_BATCH``."""
        length = round_up(num_tokens)
        if self._try_batch is None:
            return max(1, min(LARGEST_BATCH, CPU_TOKENS // length))
        if length not in self._found:
            # The largest batch fits shorter sequences as well; a smaller one might be raised, so it is tried.
            is_sure = any(longer >= length and size == LARGEST_BATCH for longer, size in self._found.items())
            self._found[length] = LARGEST_BATCH if is_sure else self._find(self._try_batch, length)
        return self._found[length]

    def _find(self, try_batch: Callable[[int, int], object], length: int) -> int:
        size = LARGEST_BATCH
        while size > 1:
            try:
                try_batch(size, length)
                break
            except torch.OutOfMemoryError:
                size //= 2
        return size


def round_up(num_tokens: int) -> int:
    """Return the smallest power of two that is not below ``num_tokens`` (at least 1)."""
    return 1 << max(0, num_tokens - 1).bit_length()
