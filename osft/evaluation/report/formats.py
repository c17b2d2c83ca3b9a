"""How numbers and sentences of an evaluation are written, the same in the page, in Markdown and in the terminal.

Shares of a score are written by :mod:`osft.evaluation.report.points`. Names come from the user and from tasks' files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from osft.evaluation.forgetting import Pool, TaskComparison
from osft.evaluation.gate import ROUND_OFF
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.points import MINUS, NO_POINTS, format_bound, format_ceiling, format_points

DASH = "\N{EM DASH}"
DIRECTIONS = dict.fromkeys(map(ord, "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))
"""Characters without a glyph that turn the text after them round; letters of every script run right without them."""

MAX_NAMES = 6
"""Names in a sentence; the table has all."""

LARGE_NUMBER = 10_000
"""From here a number is written whole, with commas, and not as a power of ten."""

HUGE_NUMBER = 1_000_000_000
"""From here as a power of ten after all: the perplexity of a broken model would widen the table beyond its page."""


def verdict_sentence(report: ForgettingReport) -> str:
    """Return the outcome in one sentence, which begins with what decided it."""
    forgotten, gained = _forgotten(report), _gained(report)
    clauses = [forgotten, gained]
    if not report.passed and _is_forgetting_kept(report):
        if not _is_cumulative_kept(report):
            clauses = [_added_up(report), *clauses]
        elif _is_gain_missed(report):
            clauses = [gained, forgotten]
        else:
            clauses = ["a limit of a single task is not kept", *clauses]
    may = "may" if report.passed else "should not"
    return f"The tuned model {may} replace the base: {', '.join(clauses[:-1])}, and {clauses[-1]}."


def _forgotten(report: ForgettingReport) -> str:
    value, upper = report.forgetting, report.forgetting_upper
    if report.too_few_documents:
        names = name_some(report.too_few_documents)
        return f"it may have forgotten more than was measured (too few documents in {names})"
    if value <= _max_forgetting(report) + ROUND_OFF and not _is_forgetting_kept(report):
        confidence = f"95% confidence{_left_out(report)}"
        return f"too few documents to tell, it may have forgotten {format_ceiling(upper)} points ({confidence})"
    lost = "nothing measurable" if value < NO_POINTS else f"{format_points(value)} points"
    return f"it forgot {lost} ({bound_phrase(report)})"


def _added_up(report: ForgettingReport) -> str:
    value, upper = report.cumulative_forgetting or 0.0, report.cumulative_forgetting_upper or 0.0
    if value <= float(report.settings["max_cumulative_forgetting"]) + ROUND_OFF:
        return f"since its best versions it may have forgotten {format_ceiling(upper)} points (95% confidence)"
    return f"small losses have added up to {format_points(value)} points since its best versions"


def _gained(report: ForgettingReport) -> str:
    if report.target_gain is None:
        return "what it gained was not measured"
    verb = "lost" if report.target_gain <= -NO_POINTS else "gained"
    # Up to half a tenth below zero is written as a gain of 0.0, and no share of either has a sign.
    gained = f"it {verb} {format_points(abs(report.target_gain))} points on the new data"
    minimum = float(report.settings["min_target_gain"])
    if _is_gain_missed(report) and minimum >= NO_POINTS:
        gained += f" where {format_points(minimum)} were asked for"
    return gained


def _is_forgetting_kept(report: ForgettingReport) -> bool:
    upper = report.forgetting_upper if report.has_bound else report.forgetting
    return not report.too_few_documents and upper <= _max_forgetting(report) + ROUND_OFF


def _is_cumulative_kept(report: ForgettingReport) -> bool:
    upper = report.cumulative_forgetting_upper
    return upper is None or upper <= float(report.settings["max_cumulative_forgetting"]) + ROUND_OFF


def _is_gain_missed(report: ForgettingReport) -> bool:
    minimum = float(report.settings["min_target_gain"])
    return report.target_gain is not None and report.target_gain < minimum - ROUND_OFF


def _max_forgetting(report: ForgettingReport) -> float:
    return float(report.settings["max_forgetting"])


def bound_phrase(report: ForgettingReport) -> str:
    """Return how much may have been forgotten; a bound names the tasks whose chance is not in it."""
    if report.has_bound:
        return format_bound(report.forgetting_upper) + _left_out(report)
    return f"how much more is not known: {_missing_bounds(report)}"


def _left_out(report: ForgettingReport) -> str:
    return f", chance in {name_some(report.unbounded_tasks)} left out" if report.unbounded_tasks else ""


def _missing_bounds(report: ForgettingReport) -> str:
    """Return why there is no bound at all."""
    reasons = (("too few documents in", report.too_few_documents), ("no interval for", report.unbounded_tasks))
    return ", ".join(f"{reason} {name_some(names)}" for reason, names in reasons if names)


def format_score(task: TaskComparison, score: float) -> str:
    """Return a score as people write it: accuracies in percent, other metrics as they are."""
    return f"{100 * score:.1f}%" if is_percentage(task) else format_number(score)


def format_change(task: TaskComparison, change: float) -> str:
    """Return a change with its sign, in points of a percentage or in the metric's unit."""
    if is_percentage(task):
        return format_points(change, signed=True)
    return f"{change + 0.0:+.3g}".replace("-", MINUS)


def format_interval(task: TaskComparison) -> str:
    """Return the 95% interval of the change, a dash if there is none."""
    if task.ci_low is None or task.ci_high is None:
        return DASH
    return f"{format_change(task, task.ci_low)} to {format_change(task, task.ci_high)}"


def format_share(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}%".replace("-", MINUS)


def format_number(value: float) -> str:
    """Return a number with four digits, or whole where it is large and not huge."""
    text = f"{value:,.0f}" if LARGE_NUMBER <= abs(value) < HUGE_NUMBER else f"{value:.4g}"
    return text.replace("-", MINUS)


def format_chance(p_value: float) -> str:
    """Return a probability as people write it."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def is_percentage(task: TaskComparison) -> bool:
    """Return whether the task's scores are shares of 1, and are written in percent."""
    return not task.is_relative and min(task.base, task.tuned) >= 0


def missing_interval(task: TaskComparison) -> str | None:
    """Return why a task has no interval, None if it has one."""
    if task.ci_low is not None and task.ci_high is not None:
        return None
    return "one document: no interval" if task.n == 1 else "no interval"


def floor_note(task: TaskComparison) -> str | None:
    """Return why a task can show no forgetting, None if it can."""
    return "the base answers nothing right: nothing can be lost here" if task.has_nothing_to_lose else None


def pool_notes(pools: Sequence[Pool]) -> dict[str, str]:
    """Return what is said beside each pool and each task within one, by name: what counts, and what is only shown."""
    notes: dict[str, str] = {}
    for pool in pools:
        name, number = pool.comparison.task, len(pool.tasks)
        notes |= dict.fromkeys(pool.tasks, f"counts in {name}" if pool.counts else f"shown in {name}")
        sets = f"{number} held-out set{'' if number == 1 else 's'}"
        notes[name] = f"{sets}, as one task" if pool.counts else f"{sets}, too few documents to count"
    return notes


def name_some(names: Sequence[str]) -> str:
    """Return a list of names for a sentence, the first few if there are many."""
    more = len(names) - MAX_NAMES
    return in_order(", ".join(names[:MAX_NAMES])) + (f" and {more} more" if more > 0 else "")


def in_order(sentence: str) -> str:
    """Return a sentence that no name within can turn round: what the name hides in it is dropped."""
    return sentence.translate(DIRECTIONS)


def plain_values(values: Mapping[str, Any]) -> dict[str, str | dict[str, str]]:
    """Return settings as text for people, in their order; what was not given is left out.

    A mapping below is kept as one level of text, or is one text where it says the same of everything.
    """
    shown: dict[str, str | dict[str, str]] = {}
    for key, value in values.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            # The names below are often names of tasks, and are left as they are.
            below = {str(inner): text for inner, one in value.items() if (text := _plain(one))}
            if len(below) > 2 and len(set(below.values())) == 1:
                shown[name] = f"{next(iter(below.values()))} for each of {len(below)}"
            elif below:
                shown[name] = below
        elif text := _plain(value):
            # A seed is copied, not read.
            shown[name] = text.replace(",", "") if key == "seed" else text
    return shown


def _plain(value: Any) -> str:
    """Return a plain value as text, an empty one for nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    return f"{value:,}" if isinstance(value, int) and value >= LARGE_NUMBER else str(value)
