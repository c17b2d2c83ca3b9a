"""The step that ends a sweep: the ratio is chosen and kept with its report, and its model becomes the sweep's own."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osft.errors import WorkspaceError
from osft.sweep.choice import RatioChoice, choose_ratio
from osft.sweep.linked_steps import link_step
from osft.sweep.markdown import write_markdown
from osft.sweep.measured_ratio import EVALUATION_STEP, TRAINING_STEP, read_ratios
from osft.sweep.page import write_sweep_page
from osft.sweep.ratio_runs import RatioRun
from osft.workspace import MANIFEST_NAME, Manifest, Workspace

logger = logging.getLogger(__name__)

CHOICE_STEP = "choice"
BASELINE_STEP = "baseline"
SWEEP_PAGE_NAME = "report.html"
MARKDOWN_NAME = "report.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenModel:
    """The chosen ratio, and its steps as those of the sweep's own run."""

    choice: RatioChoice
    folder: Path
    """With ``choice.json``, ``report.html`` and ``report.md``."""

    training: Manifest
    evaluation: Manifest


def choose_model(workspace: Workspace, run_id: str, runs: Sequence[RatioRun]) -> ChosenModel:
    """Choose a ratio, report on all, and link the chosen training and evaluation into the sweep's run.

    So the sweep's run holds one model with its evaluation, as any run does, and is promoted, compared and pruned as
    one. What the base scored was measured once, in the sweep's run, and is linked into those of the ratios.

    Args:
        workspace: where the runs are.
        run_id: id of the sweep.
        runs: the run of each ratio, evaluated.

    Raises:
        WorkspaceError: if a run has not come to its end, or a file is not what its step left.
        EvaluationError: if two models were not asked the same.
    """
    baseline = _manifest(workspace, run_id, BASELINE_STEP)
    # Before anything is linked: a run that is gone must not come back as a part of one.
    evaluations = {run.run_id: _manifest(workspace, run.run_id, EVALUATION_STEP).fingerprint for run in runs}
    for run in runs:
        link_step(workspace, baseline, run.run_id, BASELINE_STEP)
    manifest = workspace.complete(
        run_id,
        CHOICE_STEP,
        inputs={"ratios": [run.ratio for run in runs], "evaluations": evaluations},
        work=lambda folder: _choose(workspace, runs, folder),
    )
    folder = workspace.resolve(manifest.path)
    choice = RatioChoice.load(folder)
    logger.info("%s", choice.why)
    training, evaluation = (
        link_step(workspace, _manifest(workspace, choice.run_id, step), run_id, step)
        for step in (TRAINING_STEP, EVALUATION_STEP)
    )
    return ChosenModel(choice=choice, folder=folder, training=training, evaluation=evaluation)


def _choose(workspace: Workspace, runs: Sequence[RatioRun], folder: Path) -> None:
    measured = read_ratios(workspace, runs)
    choice = choose_ratio(measured)
    choice.save(folder)
    write_sweep_page(choice, measured, folder / SWEEP_PAGE_NAME)
    write_markdown(choice, folder / MARKDOWN_NAME)


def _manifest(workspace: Workspace, run_id: str, step: str) -> Manifest:
    path = workspace.run_directory(run_id) / step / MANIFEST_NAME
    if not path.is_file():
        raise WorkspaceError(f"run '{run_id}' has no {step}: it never ended, or was removed. Start a new sweep.")
    return Manifest.load(path)
