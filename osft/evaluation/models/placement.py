"""On which devices a model runs: one, a copy on each, or spread over all.

A copy on each GPU is the fastest where one fits: the processes share nothing but the list of requests. A model that is
too large for one GPU is spread over all of them, layer after layer (accelerate's ``device_map="auto"``).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

LARGEST_SHARE = 0.85
"""Of a GPU's memory, for the weights; the rest is for activations and the cache of keys and values."""

CPU = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a model runs."""

    devices: tuple[str, ...]
    """torch's names of them; a process with a copy of the model on each, unless it is spread."""

    is_spread: bool = False
    """Whether the layers of one copy are spread over all visible GPUs."""


def choose_placement(weight_bytes: int, gpu_memory_bytes: Sequence[int]) -> Placement:
    """Return where a model runs.

    Args:
        weight_bytes: the size of its weights.
        gpu_memory_bytes: the whole memory of each visible GPU; empty on a machine without.
    """
    if not gpu_memory_bytes:
        return Placement(devices=(CPU,))
    if len(gpu_memory_bytes) > 1 and weight_bytes > LARGEST_SHARE * min(gpu_memory_bytes):
        return Placement(devices=("cuda",), is_spread=True)
    return Placement(devices=tuple(f"cuda:{number}" for number in range(len(gpu_memory_bytes))))


def visible_gpu_memory_bytes() -> tuple[int, ...]:
    """Return the memory of each GPU that this process sees."""
    return tuple(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))


def warn_of_missing_gpus(expected: str) -> None:
    """Say so where fewer GPUs are to be seen than a step was given; on a CPU it could take days unnoticed.

    Args:
        expected: a whole number as text, which is what KFP hands to a pod.
    """
    visible = torch.cuda.device_count()
    if expected.isdecimal() and visible < int(expected):
        logger.warning(
            "the step was given %s GPUs and sees %d: it runs on %s. On a cluster, look at the node's driver and at "
            "the image.",
            expected, visible, "these" if visible else "the CPU",
        )  # fmt: skip
