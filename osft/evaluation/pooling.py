"""What earlier versions of a chain held out, as one task.

Every version leaves a held-out set behind, and each set is a retention task of all runs after it. Were each to count
by itself, one increment of a few rows would block its chain for good: of 5 documents, none lost, a loss of 45 points
cannot be ruled out, and the gate goes by what cannot. And a long chain's sets would in time outweigh the tasks that
the user named. So all sets that are scored alike are one task over the union of their documents: an accuracy over all
rows, a perplexity over all tokens. Where a chain has both kinds there are two pools.

The bound is found as any task's is (:mod:`osft.evaluation.statistics`), as if the documents were drawn from one heap.
They were drawn set by set, which varies less: the bound errs to the safe side. Within a pool a gain on one set makes up
for a loss on another, as it does within any task; each set is shown by itself, and can be given a limit of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from osft.evaluation.forgetting import ComparedPool, Pool, TaskLabel, compare_scores
from osft.evaluation.paired_task import PairedTask
from osft.evaluation.statistics import PairedScores

POOL_NAME = "earlier_holdouts"
"""What a pool's name begins with; its metric follows, so that a set of the other kind changes no name."""


def pool_earlier_holdouts(paired: Sequence[PairedTask], *, seed: int) -> tuple[ComparedPool, ...]:
    """Return the sets that earlier versions held out, as one task for each kind of score.

    Args:
        paired: every task; those that are no such set, and those that cannot be taken apart into documents, are left.
            The models that the tuned one is paired with may differ from set to set.
        seed: of the draws.
    """
    kinds: dict[tuple[str, bool, str], list[tuple[str, PairedScores]]] = {}
    for one in paired:
        if one.is_earlier_holdout and one.scores is not None:
            kind = (one.label.metric, one.label.higher_is_better, one.scores.aggregation)
            kinds.setdefault(kind, []).append((one.label.task, one.scores))
    return tuple(
        _pool(metric, higher_is_better, sets, seed=seed) for (metric, higher_is_better, _), sets in kinds.items()
    )


def union_of(parts: Sequence[PairedScores]) -> PairedScores:
    """Return all documents of parts that are joined and read alike, at least one part."""
    return replace(
        parts[0],
        base=np.concatenate([part.base for part in parts]),
        tuned=np.concatenate([part.tuned for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


def _pool(metric: str, higher_is_better: bool, sets: Sequence[tuple[str, PairedScores]], *, seed: int) -> ComparedPool:
    label = TaskLabel(task=f"{POOL_NAME}_{metric}", kind="retention", metric=metric, higher_is_better=higher_is_better)
    compared = compare_scores(label, union_of([scores for _, scores in sets]), seed=seed)
    pool = Pool(tasks=tuple(name for name, _ in sets), comparison=compared.comparison)
    return ComparedPool(pool=pool, loss_draws=compared.loss_draws)
