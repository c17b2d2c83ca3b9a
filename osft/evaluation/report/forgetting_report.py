"""The report of an evaluation: the content of ``forgetting.json``, which every other form is drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osft.errors import EvaluationError
from osft.evaluation.cumulative import BestComparison
from osft.evaluation.forgetting import Pool, SecondaryMetric, TaskComparison, has_bound
from osft.workspace import read_json, write_json

if TYPE_CHECKING:
    from osft.evaluation.probe import ProbeComparison


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgettingReport:
    """What was measured of two models, and what was judged of it."""

    base: str
    tuned: str
    tasks: tuple[TaskComparison, ...]

    pools: tuple[Pool, ...] = ()
    """What earlier versions held out: those of :attr:`tasks` that count as one, if they have documents enough."""

    forgetting: float
    """Mean over the retention tasks of the share of the score that was lost; 0 is none."""

    forgetting_upper: float
    """One-sided 95% upper confidence bound of :attr:`forgetting`: what the gate looks at. See :attr:`has_bound`."""

    unbounded_tasks: tuple[str, ...]
    """Retention tasks whose score cannot be taken apart: the bound takes their value as certain, which it is not."""

    too_few_documents: tuple[str, ...] = ()
    """Retention tasks of one document that says nothing of what was lost: the gate does not pass on these."""

    target_gain: float | None
    """Mean over the target tasks of the share gained; None if there was no target task."""

    backward_transfer: float
    """Mean over the retention tasks of the signed change, as a share of the score."""

    average_accuracy_base: float | None
    average_accuracy_tuned: float | None
    """Mean score of all tasks that are scored from 0 to 1; None if none is."""

    cumulative_forgetting: float | None = None
    """Mean over the retention tasks of the share lost against each task's best version; None where the base is the
    first of its chain."""

    cumulative_forgetting_upper: float | None = None
    """One-sided 95% upper confidence bound of it: what the gate looks at."""

    best_tasks: tuple[BestComparison, ...] = ()
    """Each retention task against the version that answered it best."""

    best_pools: tuple[Pool, ...] = ()
    """Those of :attr:`best_tasks` that count as one."""

    origin_forgetting: float | None = None
    origin_forgetting_upper: float | None = None
    """The same against the origin, over :attr:`origin_tasks` and :attr:`origin_pools`."""

    origin_tasks: tuple[TaskComparison, ...] = ()
    origin_pools: tuple[Pool, ...] = ()
    left_out_references: tuple[str, ...] = ()
    """A sentence for each task of an earlier version that was asked otherwise, and is not compared."""

    probe: "ProbeComparison | None"
    """How far the models differ on a text; None if none was given."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence for each limit, met or not."""

    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training: plain values, possibly one level of mappings below."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the training data, in the same form."""

    @property
    def has_bound(self) -> bool:
        """Whether :attr:`forgetting_upper` means something: see :func:`osft.evaluation.forgetting.has_bound`."""
        return has_bound(self.tasks, self.pools)

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, self)

    @classmethod
    def load(cls, path: Path | str) -> "ForgettingReport":
        """Read a report back.

        Raises:
            EvaluationError: if there is no such file or it is no report.
        """
        try:
            content = read_json(Path(path))
            for name in ("tasks", "origin_tasks"):
                content[name] = tuple(_task(fields) for fields in content.get(name, ()))
            for name in ("pools", "best_pools", "origin_pools"):
                content[name] = tuple(_pool(fields) for fields in content.get(name, ()))
            content["best_tasks"] = tuple(_best(fields) for fields in content.get("best_tasks", ()))
            for name in ("reasons", "unbounded_tasks", "too_few_documents", "left_out_references"):
                content[name] = tuple(content.get(name, ()))
            return cls(probe=_probe(content.pop("probe")), **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EvaluationError(f"{path}: no report of an evaluation ({error}). Run the evaluation again.") from error


def _task(fields: dict[str, Any]) -> TaskComparison:
    secondary = tuple(SecondaryMetric(**one) for one in fields["secondary"])
    return TaskComparison(**fields | {"secondary": secondary, "leaves": tuple(fields.get("leaves", ()))})


def _pool(fields: dict[str, Any]) -> Pool:
    return Pool(tasks=tuple(fields["tasks"]), comparison=_task(fields["comparison"]))


def _best(fields: dict[str, Any]) -> BestComparison:
    return BestComparison(
        version=fields["version"],
        compared_with=tuple(fields["compared_with"]),
        comparison=_task(fields["comparison"]),
    )


def _probe(fields: dict[str, Any] | None) -> "ProbeComparison | None":
    if fields is None:
        return None
    # It brings torch and lm-eval along, some seconds that only a report with a probe pays.
    from osft.evaluation.probe import ProbeComparison

    return ProbeComparison(**fields)
