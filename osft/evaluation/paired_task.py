"""Two models' results on one task, before they are compared."""

from dataclasses import dataclass

from osft.evaluation.forgetting import ComparedTask, TaskLabel, compare_scores, compare_values
from osft.evaluation.statistics import PairedScores


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTask:
    """Two models' results on one task, or on a group that is scored as one."""

    label: TaskLabel
    scores: PairedScores | None
    """The documents; None where the score is no function of sums over them."""

    base: float
    tuned: float
    """The task's score."""

    num_documents: int

    is_earlier_holdout: bool = False
    """Whether these are rows that an earlier version held out."""

    def compare(self, *, seed: int) -> ComparedTask:
        """Return the change, with an interval where there are documents' scores.

        Args:
            seed: of the draws.
        """
        if self.scores is not None:
            return compare_scores(self.label, self.scores, seed=seed)
        values = compare_values(self.label, base=self.base, tuned=self.tuned, num_documents=self.num_documents)
        return ComparedTask(comparison=values, loss_draws=None)
