"""The report as flat numbers, under names that stay the same from run to run.

The compare-runs pages of the pipelines UIs line runs up by the names of their metrics; what is missing in a run is
missing here, too, and not a 0 that was never measured.
"""

import math
from typing import TypeGuard

from osft.evaluation.report.forgetting_report import ForgettingReport

TRAINING_SETTINGS = ("unfreeze_rank_ratio", "learning_rate", "num_epochs")
"""Settings that people compare runs by."""


def flat_metrics(report: ForgettingReport) -> dict[str, float]:
    """Return the numbers of a report by name.

    ``forgetting``, ``forgetting_upper``, ``target_gain``, ``passed`` (1.0 or 0.0), ``backward_transfer``,
    ``average_accuracy`` (of the tuned model), ``retention.<task>.base``, ``.tuned`` and ``.delta``, the same for
    ``target.<task>`` and ``pool.<pool>``; where the base has ancestors, ``cumulative_forgetting``,
    ``cumulative_forgetting_upper``, ``origin_forgetting``, ``retention.<task>.best`` (the best version's score) and
    ``pool.<pool>.best``; ``probe.kl``, ``probe.perplexity_base``, ``probe.perplexity_tuned``; of the training
    ``unfreeze_rank_ratio``, ``learning_rate`` and ``num_epochs``. All are finite.
    """
    numbers: dict[str, object] = {
        "forgetting": report.forgetting,
        "forgetting_upper": report.forgetting_upper if report.has_bound else None,
        "cumulative_forgetting": report.cumulative_forgetting,
        "cumulative_forgetting_upper": report.cumulative_forgetting_upper if report.has_bound else None,
        "origin_forgetting": report.origin_forgetting,
        "target_gain": report.target_gain,
        "passed": float(report.passed),
        "backward_transfer": report.backward_transfer,
        "average_accuracy": report.average_accuracy_tuned,
    }
    shown = [(task.kind, task) for task in report.tasks] + [("pool", pool.comparison) for pool in report.pools]
    for kind, task in shown:
        for name in ("base", "tuned", "delta"):
            numbers[f"{kind}.{task.task}.{name}"] = getattr(task, name)
    for best in report.best_tasks:
        numbers[f"retention.{best.comparison.task}.best"] = best.comparison.base
    for pool in report.best_pools:
        numbers[f"pool.{pool.comparison.task}.best"] = pool.comparison.base
    if report.probe is not None:
        numbers |= {
            "probe.kl": report.probe.kl,
            "probe.perplexity_base": report.probe.base_perplexity,
            "probe.perplexity_tuned": report.probe.tuned_perplexity,
        }
    numbers |= {name: report.training.get(name) for name in TRAINING_SETTINGS}
    return {name: float(value) for name, value in numbers.items() if _is_number(value)}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
