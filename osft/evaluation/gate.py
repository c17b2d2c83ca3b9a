"""The gate: may the tuned model replace the base, and why.

Limits are on upper confidence bounds of what was lost, so that a small sample cannot pass by luck: what is not known
counts against the tuned model. The gain is held against its measured value, because too small a gain costs a training
and not an ability. Every limit gets one sentence, met or not, and so does everything that a bound does not cover.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.cumulative import ORIGIN, CumulativeOutcome
from osft.evaluation.forgetting import MIN_POOLED_DOCUMENTS, Outcome, Pool, TaskComparison, has_bound
from osft.evaluation.report.points import format_bound, format_ceiling, format_points

MOST_LOST = 3
"""Tasks that a sentence names; the report has all."""

ROUND_OFF = 1e-9
"""Limits are met up to this: 0.95 - 0.90 is 0.0499999... or 0.0500000...1, depending on the order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The gate's answer."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence for each limit, met or not, and for what could not be bounded."""


@dataclass(frozen=True, slots=True)
class _Check:
    passed: bool
    reason: str


def judge(outcome: Outcome, config: EvaluationConfig, chain: CumulativeOutcome | None = None) -> Verdict:
    """Return whether the tuned model may replace the base, and why.

    Args:
        outcome: what was measured.
        config: the limits.
        chain: what was lost since each task's best version; None where there is no version before the base.

    Raises:
        EvaluationError: if a limit is for a task that was not compared.
    """
    checks = [_check_forgetting(outcome, config.max_forgetting)]
    if chain is not None:
        checks.append(_check_cumulative(chain, config.max_cumulative_forgetting))
    checks += [_Check(True, _too_small(pool)) for pool in outcome.pools if not pool.counts]
    if outcome.too_few_documents:
        checks.append(_Check(False, _too_few(outcome.too_few_documents)))
    if floors := [task.task for task in outcome.tasks if task.has_nothing_to_lose]:
        checks.append(_Check(True, f"The base answers nothing right in {_listed(floors)}: nothing can be lost there."))
    for name, limit in config.task_limits.items():
        checks += _check_task(name, limit, outcome.tasks)
    checks.append(_check_gain(outcome.target_gain, config.min_target_gain))
    return Verdict(passed=all(check.passed for check in checks), reasons=tuple(check.reason for check in checks))


def _check_forgetting(outcome: Outcome, limit: float) -> _Check:
    value, upper = outcome.forgetting, outcome.forgetting_upper
    passed = upper <= limit + ROUND_OFF
    if has_bound(outcome.tasks, outcome.pools):
        reason = f"Forgetting is {_points(value)}{_bound(value, upper, limit)}."
    else:
        reason = f"Forgetting is {_points(value)}, {_relation(value <= limit + ROUND_OFF)} {_limit(limit)}."
    if outcome.unbounded_tasks:
        reason += (
            f" For {_listed(outcome.unbounded_tasks)}, whose score cannot be taken apart into documents, chance could "
            "not be bounded: the measured change counts as it is."
        )
    return _Check(passed, reason)


def _check_cumulative(chain: CumulativeOutcome, limit: float) -> _Check:
    value, upper = chain.cumulative_forgetting, chain.cumulative_forgetting_upper
    passed = upper <= limit + ROUND_OFF
    reason = f"Forgetting since each task's best version is {_points(value)}"
    if has_bound([task.comparison for task in chain.best_tasks], chain.best_pools):
        reason += f"{_bound(value, upper, limit)}."
    else:
        reason += f", {_relation(value <= limit + ROUND_OFF)} {_limit(limit)}."
    return _Check(passed, reason if passed else reason + _most_lost(chain))


def _most_lost(chain: CumulativeOutcome) -> str:
    """Return a sentence on what counts and lost most, and since which version; nothing if none lost anything."""
    pooled = {name for pool in chain.best_pools for name in pool.tasks}
    since = [
        (best.comparison, "the origin" if best.version == ORIGIN else best.version)
        for best in chain.best_tasks
        if best.comparison.task not in pooled
    ]
    since += [(pool.comparison, "the best version of each set") for pool in chain.best_pools if pool.counts]
    lost = sorted((task.change_share, task.task, version) for task, version in since)
    named = [f"{task} ({_points(-change)} since {version})" for change, task, version in lost[:MOST_LOST] if change < 0]
    return f" Most was lost in {_listed(named)}." if named else ""


def _check_task(name: str, limit: float, tasks: Sequence[TaskComparison]) -> list[_Check]:
    """Return a check of each task that the user's ``name`` stands for."""
    named = [task for task in tasks if (task.asked_as or task.task) == name]
    if not named:
        raise EvaluationError(f"task_limits names '{name}', which was not compared. Evaluate it, or drop its limit.")
    return [_check_loss(task, limit) for task in named]


def _check_loss(task: TaskComparison, limit: float) -> _Check:
    loss = max(0.0, -task.change_share)
    if task.has_too_few_documents:
        return _Check(False, f"{task.task} has {_limit(limit)}, and too few documents to tell whether it is kept.")
    if task.loss_upper is None:
        passed = loss <= limit + ROUND_OFF
        reason = (
            f"{task.task} lost {_points(loss)}, {_relation(passed)} its limit of {_points(limit)}; "
            "chance could not be bounded for it."
        )
        return _Check(passed, reason)
    reason = f"{task.task} lost {_points(loss)}{_bound(loss, task.loss_upper, limit)}."
    return _Check(task.loss_upper <= limit + ROUND_OFF, reason)


def _check_gain(gain: float | None, minimum: float) -> _Check:
    if gain is None:
        return _Check(True, "There is no target task, so the gain on the new data was not measured.")
    passed = gain >= minimum - ROUND_OFF
    relation = "no less than" if passed else "below"
    return _Check(passed, f"The gain on the new data is {_points(gain)}, {relation} the {_points(minimum)} asked for.")


def _bound(value: float, upper: float, limit: float) -> str:
    """Return what is said of a loss after its value: its bound, and where both stand to the limit."""
    if upper <= limit + ROUND_OFF:
        return f" and, with 95% confidence, at most {_points(upper)}: within {_limit(limit)}"
    if value > limit + ROUND_OFF:
        return f", above {_limit(limit)} ({format_bound(upper)})"
    return (
        f", within {_limit(limit)}, but {format_ceiling(upper)} points cannot be ruled out (95% confidence): "
        "more documents would decide"
    )


def _too_small(pool: Pool) -> str:
    count = pool.comparison.n
    return (
        f"Earlier versions held out {count} document{'' if count == 1 else 's'} ({_listed(pool.tasks)}), scored by "
        f"{pool.comparison.metric}: too few to count, which takes {MIN_POOLED_DOCUMENTS}."
    )


def _too_few(names: Sequence[str]) -> str:
    return (
        f"There are too few documents in {_listed(names)}: one document does not tell what was lost. Raise "
        "the limit of documents, or leave the task out."
    )


def _relation(passed: bool) -> str:
    return "within" if passed else "above"


def _limit(limit: float) -> str:
    return f"the limit of {_points(limit)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _points(share: float) -> str:
    return f"{format_points(share)} points"
