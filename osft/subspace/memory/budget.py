"""How much of a model's room its memory takes, and for about how many more tasks there is any.

A weight with ``m`` inputs has room for ``frozen_rank(m, m, rho)`` protected directions. A memory needs as many as make
99% of what it knows (:data:`osft.subspace.memory.memory.NEEDED_SHARE`). The next tasks are taken to add as many as
those after the first entry did on the average; a memory with one entry alone, as many as that needs, which is more
than a task that has something in common with it will.
"""

import logging
import math
from dataclasses import dataclass

from osft.subspace.decomposition import frozen_rank
from osft.subspace.memory.memory import NEEDED_SHARE, GroupMemory, SubspaceMemory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBudget:
    """The room of the weights that share an input."""

    targets: tuple[str, ...]
    inputs: int
    """Size of the input."""

    needed: int
    """Directions that the memory needs."""

    room: int
    """Directions that can be protected."""

    more_tasks: float
    """For about how many more tasks there is room: negative where there is too little for those so far, infinite where
    there is enough and the tasks after the first needed nothing more."""

    @property
    def used_share(self) -> float:
        """Share of the room that is used; above 1 where there is not enough."""
        return self.needed / self.room if self.room else math.inf


def memory_budget(memory: SubspaceMemory, unfreeze_rank_ratio: float) -> tuple[GroupBudget, ...]:
    """Return the budget of each group, in the order of the model.

    Args:
        memory: what is to be protected.
        unfreeze_rank_ratio: share of the directions left free, 0 to 1, the same for all.
    """
    return tuple(_group_budget(group, unfreeze_rank_ratio) for group in memory.groups)


def tightest(budgets: tuple[GroupBudget, ...]) -> GroupBudget:
    """Return the group with the largest share of its room used."""
    return max(budgets, key=lambda budget: budget.used_share)


def warn_over_budget(memory: SubspaceMemory, unfreeze_rank_ratio: float) -> None:
    """Log a warning if some group's memory does not fit into its room."""
    budgets = memory_budget(memory, unfreeze_rank_ratio)
    over = [budget for budget in budgets if budget.needed > budget.room]
    if over:
        worst = tightest(tuple(over))
        logger.warning(
            "the memory of %d tasks does not fit into %d of %d inputs at unfreeze_rank_ratio %s; the tightest is that "
            "of %s: %d directions make %.0f%% of what was learnt, %d can be protected. Lower unfreeze_rank_ratio.",
            memory.tasks, len(over), len(budgets), unfreeze_rank_ratio, worst.targets[0], worst.needed,
            100 * NEEDED_SHARE, worst.room,
        )  # fmt: skip


def _group_budget(group: GroupMemory, unfreeze_rank_ratio: float) -> GroupBudget:
    room = frozen_rank(group.inputs, group.inputs, unfreeze_rank_ratio)
    first, last = group.needed[0], group.needed[-1]
    later_tasks = len(group.needed) - 1
    for_each_task = (last - first) / later_tasks if later_tasks else float(last)
    if last > room:
        # Too little room stays too little if nothing is added; then it is counted in tasks of those so far.
        more_tasks = (room - last) / (for_each_task if for_each_task > 0 else last / len(group.needed))
    else:
        more_tasks = (room - last) / for_each_task if for_each_task > 0 else math.inf
    return GroupBudget(targets=group.targets, inputs=group.inputs, needed=last, room=room, more_tasks=more_tasks)
