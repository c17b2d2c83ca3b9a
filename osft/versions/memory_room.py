"""How much room the memory that a version carries leaves in each of its layers: what ``osft lineage`` shows of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from osft.evaluation.report.formats import format_share
from osft.versions.folders import MEMORY_FOLDER


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRoom:
    """The room of the weights that share an input."""

    targets: tuple[str, ...]
    used_share: float | None
    """Share of the room that the memory needs; above 1 there is not enough, and None is no room at all."""

    more_tasks: float | None
    """About how many more tasks there is room for; None: no end is in sight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRoom:
    """What a version remembers, and the room that it takes."""

    tasks: int
    size_bytes: int
    inputs: tuple[InputRoom, ...]
    """The tightest first."""

    @property
    def more_tasks(self) -> float | None:
        """About how many more tasks there is room for everywhere; None: no end is in sight."""
        return min((one.more_tasks for one in self.inputs if one.more_tasks is not None), default=None)


def read_memory_room(version: Path, unfreeze_rank_ratio: float | None) -> MemoryRoom | None:
    """Return the room of the memory in a version's folder; None if it carries none, or was trained at no known ratio.

    Raises:
        ConfigError: if the memory is damaged.
    """
    folder = version / MEMORY_FOLDER
    if unfreeze_rank_ratio is None or not folder.is_dir():
        return None
    # It brings torch along, seconds that only a version with a memory pays.
    from osft.subspace.memory.budget import memory_budget
    from osft.subspace.memory.memory import SubspaceMemory

    memory = SubspaceMemory.load_header(folder)
    budgets = sorted(memory_budget(memory, unfreeze_rank_ratio), key=lambda budget: -budget.used_share)
    rooms = (
        InputRoom(targets=budget.targets, used_share=_finite(budget.used_share), more_tasks=_finite(budget.more_tasks))
        for budget in budgets
    )
    return MemoryRoom(tasks=memory.tasks, size_bytes=memory.size_bytes, inputs=tuple(rooms))


def memory_line(memory: MemoryRoom) -> str:
    """Return what a version remembers, and how much room that leaves where there is least."""
    head = f"memory of {memory.tasks} task{'' if memory.tasks == 1 else 's'}, {memory_size_text(memory)}"
    if not memory.inputs:
        return head
    tightest = memory.inputs[0]
    used = "no room" if tightest.used_share is None else f"{format_share(tightest.used_share)} of its room used"
    return f"{head}; tightest in {tightest.targets[0]}: {used}; {room_text(memory.more_tasks)}"


def memory_size_text(memory: MemoryRoom) -> str:
    """Return what the memory takes on disk."""
    return decimal(memory.size_bytes)


def room_text(more_tasks: float | None) -> str:
    """Return for about how many more tasks there is room."""
    if more_tasks is None:
        return "no end in sight"
    if more_tasks < 0:
        return "too little room for the tasks so far"
    return f"room for about {more_tasks:.0f} more task{'' if round(more_tasks) == 1 else 's'}"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
