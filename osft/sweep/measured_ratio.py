"""What the run of one ratio came to, read back from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass

from osft.comparison.compared_run import ComparedRun, read_run
from osft.errors import WorkspaceError
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.sweep.gains import Answers
from osft.sweep.ratio_runs import RatioRun
from osft.versions.run_record import MEASUREMENTS_OF_TUNED
from osft.workspace import Workspace

EVALUATION_STEP = "evaluation"
TRAINING_STEP = "training"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRatio:
    """A ratio whose model is trained and evaluated."""

    ratio: float
    run: ComparedRun
    answers: Answers

    @property
    def report(self) -> ForgettingReport:
        """What was lost and gained, and whether it passed."""
        return self.answers.report

    @property
    def train_seconds(self) -> float:
        """Wall time of the training."""
        return self.run.metrics["train_seconds"]


def read_ratios(workspace: Workspace, runs: Sequence[RatioRun]) -> list[MeasuredRatio]:
    """Return what the runs came to, in their order.

    Raises:
        MissingPathError: if there is no such run.
        WorkspaceError: if a run has not come to its end.
    """
    return [_read(workspace, run) for run in runs]


def _read(workspace: Workspace, run: RatioRun) -> MeasuredRatio:
    found = read_run(workspace, run.run_id)
    if found.report is None or "train_seconds" not in found.metrics:
        raise WorkspaceError(
            f"run '{run.run_id}' is not evaluated: {found.missing_step} is missing. Start a new sweep."
        )
    folder = workspace.run_directory(run.run_id) / EVALUATION_STEP / MEASUREMENTS_OF_TUNED
    return MeasuredRatio(ratio=run.ratio, run=found, answers=Answers(report=found.report, folder=folder))
