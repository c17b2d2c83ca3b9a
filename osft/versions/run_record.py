"""What a finished run says of its model: which steps made it, from what, and what it scored."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osft.data.files import SOURCE_NAME
from osft.errors import WorkspaceError
from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.versions.base_model import BASE_STEP, BaseModel
from osft.versions.lineage import Lineage, TaskScore, read_lineage
from osft.versions.questions import question_hashes
from osft.versions.retention_tasks import has_holdout, permanent_name, task_name
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, read_json

STEPS_BEFORE = (BASE_STEP, "raw", "valid", "processed", "baseline", "training", "evaluation")
PACKAGE = "osft-continual-learning"
SCORES_NAME = "forgetting.json"
BASELINE_NAME = "baseline.json"
# Names that osft.evaluation.evaluate writes; it is not imported for them, because it brings torch and lm-eval along.
MEASUREMENTS_OF_BASE, MEASUREMENTS_OF_TUNED = "measurements/base", "measurements/tuned"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run whose model passed."""

    workspace: Workspace
    run_id: str
    steps: Mapping[str, Manifest]
    """Manifest of each step."""

    scores: Mapping[str, Any]
    """All of ``forgetting.json``."""

    @classmethod
    def read(cls, workspace: Workspace, *, run_id: str, training: Manifest, evaluation: Manifest) -> "RunRecord":
        """Read what a run has left.

        Args:
            workspace: where the run is.
            run_id: id of the run.
            training: manifest of the training step.
            evaluation: manifest of the evaluation step.

        Raises:
            WorkspaceError: if the evaluation is of another training or did not let it pass, or a step is missing.
        """
        if evaluation.inputs.get("trained") != training.fingerprint:
            raise WorkspaceError(f"{evaluation.path} evaluated another model than {training.path}. Evaluate this one.")
        scores: dict[str, Any] = read_json(workspace.resolve(evaluation.path) / SCORES_NAME)
        if scores["passed"] is not True:
            raise WorkspaceError(f"{training.path} did not pass: {' '.join(scores['reasons'])} It is not published.")
        run = workspace.run_directory(run_id)
        steps = {step: Manifest.load(run / step / MANIFEST_NAME) for step in STEPS_BEFORE}
        return cls(workspace=workspace, run_id=run_id, steps=steps, scores=scores)

    def folder(self, step: str) -> Path:
        """Return the folder that a step left."""
        return self.workspace.run_directory(self.run_id) / step

    def lineage_as(self, version: str, base: BaseModel) -> Lineage:
        """Return what a reader needs to make the model again and to judge it.

        Args:
            version: name that the model gets.
            base: what the run started from.
        """
        return Lineage(
            model_name=base.model_name,
            version=version,
            parent=base.parent,
            replaced=base.current,
            origin=base.origin,
            origin_fingerprint=self._origin_fingerprint(base),
            run_id=self.run_id,
            promoted_at=_now(),
            data={**read_json(self.folder("raw") / SOURCE_NAME), **self.scores["data"]},
            parameters={step: manifest.inputs for step, manifest in self.steps.items()},
            file_hashes={
                step: {file.name: file.sha256 for file in manifest.files} for step, manifest in self.steps.items()
            },
            software=self._software(),
            learned_task=task_name(version) if has_holdout(self.folder("processed")) else None,
            scores=self._task_scores(version),
            evaluation=self.scores,
        )

    def lineage_of_origin(self, version: str, base: BaseModel) -> Lineage:
        """Return the lineage of the origin from which this run's model, the first of its chain, was trained.

        Args:
            version: name of this run's model.
            base: what the run started from: the origin.
        """
        return Lineage(
            model_name=base.model_name,
            version=ORIGIN_VERSION,
            parent=None,
            replaced=None,
            origin=base.origin,
            origin_fingerprint=self._origin_fingerprint(base),
            run_id=self.run_id,
            promoted_at=_now(),
            data={},
            parameters={},
            file_hashes={},
            software=self._software(),
            learned_task=None,
            scores=tuple(_of_base(score) for score in self._task_scores(version) if score.before is not None),
        )

    def _origin_fingerprint(self, base: BaseModel) -> str | None:
        if base.parent is not None:
            return read_lineage(self.workspace, base.model_name, base.parent).origin_fingerprint
        fingerprint: str | None = read_json(self.folder("baseline") / BASELINE_NAME)["fingerprint"]
        return fingerprint

    def _task_scores(self, version: str) -> tuple[TaskScore, ...]:
        names = [task["task"] for task in self.scores["tasks"]]
        questions = question_hashes(self.folder("evaluation") / MEASUREMENTS_OF_TUNED, names)
        return tuple(
            TaskScore(
                task=permanent_name(task["task"], version),
                kind=task["kind"],
                metric=task["metric"],
                higher_is_better=task["higher_is_better"],
                before=task["base"],
                after=task["tuned"],
                documents=task["n"],
                questions=questions[task["task"]],
            )
            for task in self.scores["tasks"]
        )

    def _software(self) -> dict[str, str]:
        """Return the versions of this package and of those that the evaluation ran with, in the trainer's image."""
        versions = {name: value for name, value in self.scores["versions"].items() if isinstance(value, str)}
        return {PACKAGE: importlib.metadata.version(PACKAGE), **versions}


def _of_base(score: TaskScore) -> TaskScore:
    """Return what the base scored, as its own."""
    return replace(score, before=None, after=score.before if score.before is not None else score.after)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
