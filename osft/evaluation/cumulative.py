"""What the tuned model lost against the best of all versions before it, and against the origin.

Each run of a chain may lose a little and pass; ten of them lose much. So each retention task is also compared with the
version that answered it best, which is how Chaudhry et al. 2018 (arXiv:1801.10112, section 4) measure forgetting:
the best earlier score less the present one. As in :mod:`osft.evaluation.forgetting`, a gain on one task does not make
up for a loss on another. No loss is smaller here than against the base alone, since the base is one of the versions.

The best of several scores that chance has a part in is too high by chance: among equally good versions the one with
lucky documents is taken. That makes the loss larger than it is, and the gate stricter, never laxer; what it costs is
that a long chain of small tasks needs a wider limit. Of equally good versions the oldest counts, since it has had the
most time to come apart from the tuned model, and its interval is the widest.

What earlier versions held out counts as one task here, too (:mod:`osft.evaluation.pooling`): each set keeps its own
best version, and the pool is the union of these pairs.

The documents are paired as ever: a version left its answers behind (:mod:`osft.evaluation.references`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from osft.evaluation.forgetting import ComparedTask, Pool, TaskComparison, joined, mean_loss
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.pooling import pool_earlier_holdouts

ORIGIN = "origin"
"""What the model is called that the chain began with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestComparison:
    """One retention task against the version that answered it best."""

    version: str
    """Whose score was the best, e.g. ``v0002``; ``origin`` is the model that the chain began with."""

    compared_with: tuple[str, ...]
    """All versions that are known on the task, oldest first."""

    comparison: TaskComparison
    """``base`` is the best version's score."""

    @property
    def is_of_base(self) -> bool:
        """Whether the best is the base itself, so that the comparison with it says it all."""
        return self.version == self.compared_with[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class CumulativeOutcome:
    """What was lost over the whole chain."""

    cumulative_forgetting: float
    """Mean over the retention tasks of ``max(0, share lost)`` against each task's best version."""

    cumulative_forgetting_upper: float
    """One-sided 95% upper confidence bound of it, given which version is the best."""

    best_tasks: tuple[BestComparison, ...]
    best_pools: tuple[Pool, ...] = ()
    """Those of :attr:`best_tasks` that count as one, each document against the best version of its own task."""

    origin_forgetting: float | None
    origin_forgetting_upper: float | None
    """The same against the origin alone, over the tasks on which it is known; None if there is none."""

    origin_tasks: tuple[TaskComparison, ...]
    origin_pools: tuple[Pool, ...] = ()


def compare_with_chain(candidates: Iterable[Mapping[str, PairedTask]], *, seed: int) -> CumulativeOutcome:
    """Compare the tuned model with each task's best version and with the origin.

    Args:
        candidates: for each retention task the versions that are known on it, oldest first and the base last, paired
            with the tuned model. At least one task that counts.
        seed: of the bootstrap.
    """
    chosen = [(best_version(by_version), by_version) for by_version in candidates]
    best = _compare([by_version[version] for version, by_version in chosen], seed=seed)
    origin = _compare([by_version[ORIGIN] for _, by_version in chosen if ORIGIN in by_version], seed=seed)
    lost = mean_loss(best.counted)
    lost_since_origin = mean_loss(origin.counted) if origin.counted else None
    return CumulativeOutcome(
        cumulative_forgetting=lost.value,
        cumulative_forgetting_upper=lost.upper,
        best_tasks=tuple(
            BestComparison(version=version, compared_with=tuple(by_version), comparison=comparison)
            for (version, by_version), comparison in zip(chosen, best.tasks, strict=True)
        ),
        best_pools=best.pools,
        origin_forgetting=lost_since_origin.value if lost_since_origin else None,
        origin_forgetting_upper=lost_since_origin.upper if lost_since_origin else None,
        origin_tasks=origin.tasks,
        origin_pools=origin.pools,
    )


def best_version(by_version: Mapping[str, PairedTask]) -> str:
    """Return the version whose score is the best, the first of equally good ones.

    Args:
        by_version: at least one, oldest first; each pairs that version's score with the tuned model's.
    """
    direction = 1 if next(iter(by_version.values())).label.higher_is_better else -1
    return max(by_version, key=lambda version: direction * by_version[version].base)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """Pairs of models on several tasks, compared."""

    tasks: tuple[TaskComparison, ...]
    pools: tuple[Pool, ...]
    counted: list[ComparedTask]
    """What the means are over."""


def _compare(paired: Sequence[PairedTask], *, seed: int) -> _Compared:
    compared = [one.compare(seed=seed) for one in paired]
    pools = pool_earlier_holdouts(paired, seed=seed)
    return _Compared(
        tasks=tuple(one.comparison for one in compared),
        pools=tuple(one.pool for one in pools),
        counted=joined(compared, pools),
    )
