"""Which of a task's metrics counts, and which way it is better.

The rule looks at names alone, never at scores, so that it is the same for both models:

1. Only metrics that the task declares, if it gives any of them: of another one nobody says what is better.
2. In a group that lm-eval scores as one, those that it joins over the group's tasks, if the task has one of them:
   agieval's tasks have acc and acc_norm, and its score is the mean of acc.
3. Of these the first of ``PREFERRED_METRICS``, else the first.
4. Of several answer filters the first that the task declares (gsm8k: strict-match).

The other metrics are kept for information. A metric without a direction cannot count: a loss taken for an accuracy
would let a damaged model pass.
"""

from collections.abc import Collection, Mapping, Sequence

from osft.errors import EvaluationError

PREFERRED_METRICS = ("exact_match", "acc_norm", "acc", "prompt_level_strict_acc", "pass@1", "em", "f1")
"""Strict scores of whole answers first; acc_norm before acc, as public leaderboards report multiple choice."""


def choose_metric(
    task: str, metrics: Sequence[tuple[str, str]], *, declared: Collection[str] = (), joined: Collection[str] = ()
) -> tuple[str, str]:
    """Return the (metric, answer filter) that counts; the module's docstring has the rule.

    Args:
        task: for the error.
        metrics: pairs of metric and answer filter, in the task's order.
        declared: names of the metrics of which the task says what is better.
        joined: names of the metrics that the task's group joins.

    Raises:
        EvaluationError: if there is none.
    """
    if not metrics:
        raise EvaluationError(f"task '{task}' has no metric. Give it a metric_list.")
    for names in (declared, joined):
        metrics = [one for one in metrics if one[0] in names] or metrics
    for preferred in PREFERRED_METRICS:
        for metric, answer_filter in metrics:
            if metric == preferred:
                return metric, answer_filter
    return metrics[0]


def is_higher_better(task: str, metric: str, directions: Mapping[str, bool | None]) -> bool:
    """Return whether more of the metric that counts is better.

    Args:
        task: for the error.
        metric: its name.
        directions: what the task says of its metrics; lm-eval has None where neither it nor the YAML knows.

    Raises:
        EvaluationError: if nobody says.
    """
    direction = directions.get(metric)
    if direction is None:
        raise EvaluationError(
            f"task '{task}': nothing says whether a higher {metric} is better, and it is the metric that counts. "
            f"Set higher_is_better for {metric} in the task's metric_list."
        )
    return bool(direction)
