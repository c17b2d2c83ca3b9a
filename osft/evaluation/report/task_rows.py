"""The page's table: one row a task, with its interval as a bar.

Bars are boxes placed in percent of their column, so that they stay sharp at every width. Colour means one thing: the
change is told apart from chance after correction for the number of tasks. A bar that misses zero by itself may stay
grey, since among twenty bars one misses zero by chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from osft.evaluation.cumulative import BestComparison
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    floor_note,
    format_chance,
    format_change,
    format_interval,
    format_number,
    format_score,
    missing_interval,
    pool_notes,
)
from osft.evaluation.report.points import format_points

BEST_OF_EACH = "of each set"
"""Whose score the best of a pool is."""

TITLES = (("retention", "To be kept"), ("target", "To be learnt"))
MIN_SCALE = 0.01
"""The axis reaches at least this far, so that no change at all does not fill it."""

MAX_SCALE = 1.0
"""And no further than the score itself: the perplexity of a broken model would hide all other changes."""

HALF_WIDTH_PERCENT = 46.0
"""From zero to the end of the axis; the rest is room for the dot."""


def grouped_tasks(report: ForgettingReport) -> list[tuple[str, list[TaskComparison]]]:
    """Return what was to be kept, then what was to be learnt, each with its title.

    Worst first; tasks without an interval come last, since a large change of one document says least of all. What
    several of the tasks are together stands below them.
    """
    groups = []
    for kind, title in TITLES:
        tasks = sorted((task for task in report.tasks if task.kind == kind), key=_place_in_table)
        if tasks:
            groups.append((title, tasks + [pool.comparison for pool in report.pools if pool.comparison.kind == kind]))
    return groups


def table_groups(report: ForgettingReport) -> list[dict[str, Any]]:
    """Return the table's rows by group, each group on a scale of its own."""
    groups, notes = [], pool_notes(report.pools)
    for title, tasks in grouped_tasks(report):
        scale = _scale(tasks)
        rows = [_row(task, scale, notes) for task in tasks]
        groups.append({"title": title, "axis": _axis(scale), "rows": rows})
    return groups


def sorted_best(report: ForgettingReport) -> list[BestComparison]:
    """Return each task against its best version, in the order of :func:`grouped_tasks`; nothing without a chain."""
    return sorted(report.best_tasks, key=lambda best: _place_in_table(best.comparison))


def best_rows(report: ForgettingReport) -> dict[str, Any] | None:
    """Return the rows of each task against its best version, on a scale of their own; None without a chain."""
    best = sorted_best(report)
    if not best:
        return None
    pools, notes = [pool.comparison for pool in report.best_pools], pool_notes(report.best_pools)
    scale = _scale([*(task.comparison for task in best), *pools])
    rows = [_row(task.comparison, scale, notes) | {"best": task.version} for task in best]
    rows += [_row(pool, scale, notes) | {"best": BEST_OF_EACH} for pool in pools]
    return {"title": TITLES[0][1], "axis": _axis(scale), "rows": rows}


def flip_totals(report: ForgettingReport) -> Mapping[str, int] | None:
    """Return how many documents flipped either way over all tasks, None where no task is scored right or wrong."""
    counted = [task for task in report.tasks if task.lost is not None and task.gained is not None]
    if not counted:
        return None
    return {"lost": sum(task.lost or 0 for task in counted), "gained": sum(task.gained or 0 for task in counted)}


def _axis(scale: float) -> tuple[str, str]:
    return format_points(-scale, signed=True), format_points(scale, signed=True)


def _place_in_table(task: TaskComparison) -> tuple[bool, float]:
    return missing_interval(task) is not None, task.change_share


def _row(task: TaskComparison, scale: float, notes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "best": None,
        "task": task.task,
        "metric": task.metric,
        "note": notes.get(task.task),
        "lower_is_better": not task.higher_is_better,
        "secondary": [
            f"{one.metric} {format_number(one.base)} \N{RIGHTWARDS ARROW} {format_number(one.tuned)}"
            for one in task.secondary
        ],
        "base": format_score(task, task.base),
        "tuned": format_score(task, task.tuned),
        "change": format_change(task, task.delta),
        "interval": format_interval(task),
        "missing": missing_interval(task),
        "warnings": [one for one in (missing_interval(task), floor_note(task)) if one],
        "tone": _tone(task),
        "chance": format_chance(task.p_adjusted) if task.is_significant and task.p_adjusted is not None else None,
        "lost": task.lost,
        "gained": task.gained,
        "n": task.n,
        "bar": _bar(task, scale),
    }


def _tone(task: TaskComparison) -> str:
    if not task.is_significant:
        return "even"
    return "gain" if task.delta > 0 else "loss"


def _bar(task: TaskComparison, scale: float) -> dict[str, Any]:
    """Return the places of dot and range in percent of the column; beyond the axis they are held at its end."""
    share = task.change_share
    bar: dict[str, Any] = {"dot": _place(share, scale), "range": None, "beyond": None}
    if abs(share) > scale:
        bar["beyond"] = "left" if share < 0 else "right"
    if task.ci_low is not None and task.ci_high is not None:
        low, high = (_place(task.as_share(end), scale) for end in (task.ci_low, task.ci_high))
        bar["range"] = {"left": low, "width": round(high - low, 2)}
    return bar


def _scale(tasks: Sequence[TaskComparison]) -> float:
    """Return how far the axis of shares reaches: to every interval, and not to a task of one document that lost all."""
    ends = [task.as_share(end) for task in tasks for end in (task.ci_low, task.ci_high) if end is not None]
    reach = max(abs(end) for end in ends or [task.change_share for task in tasks])
    return min(max(reach, MIN_SCALE), MAX_SCALE)


def _place(share: float, scale: float) -> float:
    held = max(-scale, min(scale, share))
    return round(50 + held / scale * HALF_WIDTH_PERCENT, 2)
