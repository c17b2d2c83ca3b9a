"""What the tuned model lost against the best of all versions before it, and against the origin.

Each run of a chain may lose a little and pass; ten of them lose much. So each retention task is also compared with the
version that answered it best, which is how Chaudhry et al. 2018 (arXiv:1801.10112, section 4) measure forgetting:
the best earlier score less the present one. As in :mod:`osft.evaluation.forgetting`, a gain on one task does not make
up for a loss on another. No loss is smaller here than against the base alone, since the base is one of the versions.

The best of several scores that chance has a part in is too high by chance: among equally good versions the one with
lucky documents is taken. That makes the loss larger than it is, and the gate stricter, never laxer; what it costs is
that a long chain of small tasks needs a wider limit. Of equally good versions the oldest counts, since it has had the
most time to come apart from the tuned model, and its interval is the widest.

The documents are paired as ever: a version left its answers behind (:mod:`osft.evaluation.references`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osft.evaluation.forgetting import ComparedTask, TaskComparison, mean_loss

if TYPE_CHECKING:
    # It brings lm-eval along, which who shows a report need not pay for.
    from osft.evaluation.pairing import PairedTask

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

    origin_forgetting: float | None
    origin_forgetting_upper: float | None
    """The same against the origin alone, over the tasks on which it is known; None if there is none."""

    origin_tasks: tuple[TaskComparison, ...]


def compare_with_chain(candidates: Iterable[Mapping[str, "PairedTask"]], *, seed: int) -> CumulativeOutcome:
    """Compare the tuned model with each task's best version and with the origin.

    Args:
        candidates: for each retention task the versions that are known on it, oldest first and the base last, paired
            with the tuned model. At least one task.
        seed: of the bootstrap.
    """
    best: list[tuple[BestComparison, ComparedTask]] = []
    since_origin: list[ComparedTask] = []
    for by_version in candidates:
        best.append(_against_best(by_version, seed=seed))
        if ORIGIN in by_version:
            since_origin.append(by_version[ORIGIN].compare(seed=seed))
    lost = mean_loss([compared for _, compared in best])
    lost_since_origin = mean_loss(since_origin) if since_origin else None
    return CumulativeOutcome(
        cumulative_forgetting=lost.value,
        cumulative_forgetting_upper=lost.upper,
        best_tasks=tuple(task for task, _ in best),
        origin_forgetting=lost_since_origin.value if lost_since_origin else None,
        origin_forgetting_upper=lost_since_origin.upper if lost_since_origin else None,
        origin_tasks=tuple(one.comparison for one in since_origin),
    )


def best_version(by_version: Mapping[str, "PairedTask"]) -> str:
    """Return the version whose score is the best, the first of equally good ones.

    Args:
        by_version: at least one, oldest first; each pairs that version's score with the tuned model's.
    """
    direction = 1 if next(iter(by_version.values())).label.higher_is_better else -1
    return max(by_version, key=lambda version: direction * by_version[version].base)


def _against_best(by_version: Mapping[str, "PairedTask"], *, seed: int) -> tuple[BestComparison, ComparedTask]:
    version = best_version(by_version)
    compared = by_version[version].compare(seed=seed)
    best = BestComparison(version=version, compared_with=tuple(by_version), comparison=compared.comparison)
    return best, compared
