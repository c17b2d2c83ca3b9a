"""What the registry is told of a version: one sentence for people, and properties to compare versions by.

All of it comes from ``lineage.json``, so that it can be told again when the run's folders are gone. A number that was
not measured is left out, and so is one that is not finite. A task's score stands under the task's permanent name, the
same for each version.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.evaluation.report.points import format_points
from osft.versions.lineage import Lineage
from osft.versions.run_record import PACKAGE

Property = bool | int | float | str

ARROW = " -> "
MEASURES = (
    "forgetting", "cumulative_forgetting", "origin_forgetting",
    "target_gain", "backward_transfer",
)  # fmt: skip
BOUNDS = ("forgetting_upper", "cumulative_forgetting_upper", "origin_forgetting_upper")
WHOLE_SETTINGS = ("num_epochs", "seed")
# Also where a run was given a whole number: a registry filters by type.
REAL_SETTINGS = ("unfreeze_rank_ratio", "learning_rate")


def describe_model(lineage: Lineage) -> str:
    """Return what all versions have in common."""
    return f"Made from {lineage.origin} by Orthogonal Subspace Fine-Tuning, a version for each set of data learnt."


def describe_version(lineage: Lineage) -> str:
    """Return one sentence: what the version learnt, from what, what it gained by it and what it forgot."""
    numbers = _measured(lineage)
    rows = lineage.data.get("rows_train")
    learnt = f"{lineage.data.get('uri')}" + (f" ({rows} rows)" if rows is not None else "")
    clauses = [f"Learnt {learnt} from {lineage.parent or lineage.origin}"]
    if (gain := numbers.get("target_gain")) is not None:
        clauses.append(f"gained {format_points(gain)} points on it")
    if (lost := numbers.get("forgetting")) is not None:
        upper = numbers.get("forgetting_upper")
        bound = f" (at most {format_points(upper)} with 95% confidence)" if upper is not None else ""
        clauses.append(f"forgot {format_points(lost)} points of what it knew{bound}")
    if (cumulative := numbers.get("cumulative_forgetting")) is not None:
        clauses.append(f"{format_points(cumulative)} against the best of all versions before it")
    return f"{', '.join(clauses)}."


def properties_of(chain: Sequence[Lineage]) -> dict[str, Property]:
    """Return the properties of the last version of a chain.

    Args:
        chain: lineages, oldest first; the first may be the origin's.
    """
    lineage = chain[-1]
    data, training = lineage.data, lineage.parameters.get("training", {})
    versions = [one.version for one in chain if one.version != ORIGIN_VERSION]
    known: dict[str, Any] = {
        "run_id": lineage.run_id,
        "promoted_at": lineage.promoted_at,
        "origin": lineage.origin,
        "parent": lineage.parent or lineage.origin,
        "lineage": ARROW.join([lineage.origin, *versions]),
        "data_uri": data.get("uri"),
        "data_revision": data.get("revision"),
        "data_sha256": data.get("sha256"),
        "data_rows": data.get("rows_train", data.get("rows")),
        "osft_version": lineage.software.get(PACKAGE),
        **{name: float(training[name]) for name in REAL_SETTINGS if _is_known(training.get(name))},
        **{name: training.get(name) for name in WHOLE_SETTINGS},
        **{name: float(value) for name, value in _measured(lineage).items()},
        "passed": lineage.evaluation.get("passed"),
        "average_accuracy": lineage.evaluation.get("average_accuracy_tuned"),
        **{f"score.{score.task}": float(score.after) for score in lineage.scores},
    }
    return {name: value for name, value in known.items() if _is_known(value)}


def _measured(lineage: Lineage) -> dict[str, float]:
    """Return what the evaluation judged; bounds only where the spread of some retention task is known."""
    evaluation = lineage.evaluation
    names = (*MEASURES, *BOUNDS) if _has_bounds(evaluation) else MEASURES
    return {name: evaluation[name] for name in names if _is_known(evaluation.get(name))}


def _has_bounds(evaluation: Mapping[str, Any]) -> bool:
    tasks = evaluation.get("tasks", ())
    return any(task["kind"] == "retention" and task.get("loss_upper") is not None for task in tasks)


def _is_known(value: object) -> bool:
    return isinstance(value, Property) and not (isinstance(value, float) and not math.isfinite(value))
