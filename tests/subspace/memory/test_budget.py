"""How much room a memory takes, and what is said when there is none."""

import logging
import math
from collections.abc import Callable

import pytest
import torch

from osft.subspace.memory.budget import memory_budget, tightest, warn_over_budget
from osft.subspace.memory.memory import GroupMemory, SubspaceMemory


@pytest.fixture
def memory_needing(group_of: Callable[..., GroupMemory]) -> Callable[..., SubspaceMemory]:
    """Return a function that makes a memory with a group of 100 inputs for each history of what was needed."""

    def make(*histories: tuple[int, ...]) -> SubspaceMemory:
        groups = tuple(group_of(torch.eye(100)[:, :1], [1.0], history) for history in histories)
        return SubspaceMemory(groups=groups, tasks=len(histories[0]), tokens=9)

    return make


@pytest.mark.parametrize(
    ("needed", "used_share", "more_tasks"),
    [
        # One task of 15 directions; room for 75.
        ((15,), 0.2, 4.0),
        # The base takes 45, three tasks 5 each.
        ((45, 50, 55, 60), 0.8, 3.0),
        ((70, 75), 1.0, 0.0),
        ((70, 80), 80 / 75, -0.5),
        ((30, 30, 29), 29 / 75, math.inf),
        # Over by 15 directions, of 45 a task so far.
        ((90, 90), 90 / 75, -15 / 45),
    ],
)
def test_the_next_tasks_are_taken_to_add_what_those_so_far_did(
    memory_needing: Callable[..., SubspaceMemory], needed: tuple[int, ...], used_share: float, more_tasks: float
) -> None:
    (budget,) = memory_budget(memory_needing(needed), 0.25)

    assert (budget.targets, budget.inputs, budget.needed, budget.room) == (("q",), 100, needed[-1], 75)
    assert budget.used_share == pytest.approx(used_share)
    assert budget.more_tasks == pytest.approx(more_tasks)


def test_where_nothing_can_be_protected_there_is_no_room(memory_needing: Callable[..., SubspaceMemory]) -> None:
    (budget,) = memory_budget(memory_needing((15,)), 1.0)

    assert (budget.room, budget.used_share) == (0, math.inf)


def test_the_tightest_group_is_the_one_that_uses_most_of_its_room(
    memory_needing: Callable[..., SubspaceMemory],
) -> None:
    budgets = memory_budget(memory_needing((15,), (60,), (30,)), 0.25)

    assert tightest(budgets).needed == 60


def test_a_memory_over_its_budget_is_warned_of_with_the_figures(
    memory_needing: Callable[..., SubspaceMemory], caplog: pytest.LogCaptureFixture
) -> None:
    warn_over_budget(memory_needing((15, 20), (60, 80), (70, 90)), 0.25)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "the memory of 2 tasks does not fit into 2 of 3 inputs at unfreeze_rank_ratio 0.25; the tightest is that of q: "
        "90 directions make 99% of what was learnt, 75 can be protected. Lower unfreeze_rank_ratio."
    )


def test_a_memory_within_its_budget_is_not_worth_a_word(
    memory_needing: Callable[..., SubspaceMemory], caplog: pytest.LogCaptureFixture
) -> None:
    warn_over_budget(memory_needing((75,)), 0.25)

    assert not caplog.records
