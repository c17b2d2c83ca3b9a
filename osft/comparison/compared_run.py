"""What the workspace holds of one run, finished or not.

A run is read from what its steps left in ``runs/<run_id>/<step>/``: each folder has its manifest once the step is
done, so a run that was stopped is shown as far as it came. Parameters carry the names that the pipeline gives them,
metrics those of the Metrics artifacts of the pipelines' UIs, so that what lines up there lines up here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from osft.data.files import HOLDOUT_NAME, PROCESSING_REPORT_NAME, SOURCE_NAME, TRAIN_NAME, VALIDATION_REPORT_NAME
from osft.errors import ConfigError, MissingPathError, WorkspaceError
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.metrics import flat_metrics
from osft.lookup import describe_near
from osft.training.result import METRICS_NAME, TrainingResult
from osft.versions.base_model import BASE_STEP, BaseModel
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, read_json, safe_name

REPORT_NAME = "forgetting.json"

STEPS = {
    "raw": "dataset-download",
    "valid": "message-validation",
    "processed": "message-processing",
    "baseline": "baseline-evaluation",
    "training": "osft-training",
    "evaluation": "forgetting-evaluation",
}
"""Folder of each step that a run cannot do without, in their order, and the step's name in the pipeline."""

PARAMETER_PREFIXES = {
    BASE_STEP: "",
    "raw": "data_",
    "valid": "data_",
    "processed": "data_",
    "baseline": "eval_",
    "training": "train_",
    "evaluation": "eval_",
}
"""What the pipeline puts before the names of a step's inputs."""

RENAMED = {
    "data_model": "model_base",
    "data_data_format": "data_format",
    "data_max_seq_len": "train_max_seq_len",
    "data_seed": "train_seed",
    "data_force": "train_force",
    "train_calibration": "model_calibration",
    "train_model_path": "model_base",
    "eval_base": "model_base",
}
"""Inputs of steps that the pipeline calls otherwise."""

NO_SETTINGS = (
    "data_seen_rows",
    "data_unchanged_since",
    "train_subspace_memory",
    "eval_holdout",
    "eval_earlier_holdouts",
    "eval_ancestor_measurements",
    "eval_base_version",
    "eval_origin",
)
"""Inputs that follow from the version that a run starts from."""

DIGEST = re.compile(r"[0-9a-f]{64}")
"""An input that is the hash of a file: its content is what another step was asked for."""

TRAINING_NUMBERS = ("first_loss", "final_loss", "steps", "samples", "trainable_parameters", "seconds")
"""What the training step logs, each behind ``train_``."""

DATA_OF_STEPS = {
    "raw": (SOURCE_NAME, ("uri", "revision", "sha256", "rows")),
    "valid": (VALIDATION_REPORT_NAME, ("since", "rows_valid", "rows_quarantined", "rows_seen")),
    "processed": (PROCESSING_REPORT_NAME, ("rows_train", "rows_holdout")),
}
"""What is shown of the rows: for each step its report, and names in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPoint:
    """One optimizer step."""

    step: int
    loss: float
    """In nats a token; not a number where the training broke."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run."""

    run_id: str

    began_at: str
    """When its first step ended, ISO 8601 in UTC."""

    ended_at: str
    """When its last step so far ended."""

    missing_step: str | None
    """The first step, by its name in the pipeline, that did not finish; None if all that had to did."""

    starts_from: str | None = None
    """Version that it starts from, or the model if that is none; None if that is not known."""

    has_nothing_new: bool = False
    """Whether it ended early because earlier runs had all of its rows."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    train_sha256: str | None = None
    holdout_sha256: str | None = None
    """Hashes of the rows that were trained on and held out; None if the run did not come that far."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    report: ForgettingReport | None = None
    loss: tuple[LossPoint, ...] = ()


def read_run(workspace: Workspace, run_id: str) -> ComparedRun:
    """Return what is there of a run.

    Raises:
        MissingPathError: if there is no such run; it names near ones.
        WorkspaceError: if a manifest cannot be read.
    """
    run = workspace.run_directory(run_id)
    if not run.is_dir():
        near = describe_near(run_id, run_names(workspace))
        raise MissingPathError(f"run '{run_id}' is not in {workspace.root}. {near}")
    manifests = _manifests(run)
    report = ForgettingReport.load(run / "evaluation" / REPORT_NAME) if "evaluation" in manifests else None
    result = TrainingResult.load(run / "training") if "training" in manifests else None
    metrics = flat_metrics(report) if report else {}
    if result:
        metrics |= {f"train_{name}": float(getattr(result, name)) for name in TRAINING_NUMBERS}
    data = _data(run, manifests)
    nothing_new = data.get("rows_valid") == 0 and "processed" not in manifests
    missing = next((name for step, name in STEPS.items() if step not in manifests), None)
    return ComparedRun(
        run_id=run_id,
        began_at=_step_ends(run)[0],
        ended_at=_step_ends(run)[-1],
        missing_step=None if nothing_new else missing,
        starts_from=_starts_from(run, manifests),
        has_nothing_new=nothing_new,
        parameters=_parameters(run_id, manifests),
        data=data,
        train_sha256=_sha256(manifests, TRAIN_NAME),
        holdout_sha256=_sha256(manifests, HOLDOUT_NAME),
        metrics=metrics,
        report=report,
        loss=_loss(run),
    )


def plain_run(run: ComparedRun) -> dict[str, Any]:
    """Return a run for other programs, without the loss of every step, which its ``metrics.jsonl`` has."""
    return {one.name: getattr(run, one.name) for one in fields(run) if one.name != "loss"}


def run_names(workspace: Workspace) -> list[str]:
    """Return the ids of all runs on the workspace, the newest last."""
    runs = workspace.root / "runs"
    if not runs.is_dir():
        return []
    folders = [path for path in runs.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [path.name for path in sorted(folders, key=lambda path: (_step_ends(path)[0], path.name))]


def choose_runs(workspace: Workspace, named: Iterable[str], last: int) -> list[str]:
    """Return the ids of the runs to compare: those named, then the ``last`` newest, each once.

    Raises:
        ConfigError: if there are fewer than two.
        WorkspaceError: if an id cannot be the name of a folder.
    """
    known = run_names(workspace)
    newest = known[max(0, len(known) - last) :] if last else []
    chosen = list(dict.fromkeys([*(safe_name(name, what="run id") for name in named), *newest]))
    if len(chosen) < 2:
        raise ConfigError(f"there is nothing to compare: give two runs, or --last 2. {describe_near('', known)}")
    return chosen


def _manifests(run: Path) -> dict[str, Manifest]:
    """Return the manifest of every step that finished."""
    paths = {step: run / step / MANIFEST_NAME for step in (BASE_STEP, *STEPS)}
    return {step: Manifest.load(path) for step, path in paths.items() if path.is_file()}


def _step_ends(run: Path) -> list[str]:
    """Return when the steps ended, in order; of a run without any, when its folder was made."""
    files = [path for step in (BASE_STEP, *STEPS) if (path := run / step / MANIFEST_NAME).is_file()]
    seconds = sorted(path.stat().st_mtime for path in files or [run])
    return [datetime.fromtimestamp(one, tz=UTC).isoformat(timespec="seconds") for one in seconds]


def _starts_from(run: Path, manifests: Mapping[str, Manifest]) -> str | None:
    if BASE_STEP in manifests:
        base = BaseModel.load(run / BASE_STEP)
        return base.parent or base.model
    return None


def _parameters(run_id: str, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return what the steps were asked for, under the pipeline's names.

    The first step has what was given as the base, where the others have the version that it stood for; its names come
    last, and count.
    """
    parameters: dict[str, Any] = {}
    for step in (*STEPS, BASE_STEP):
        inputs = manifests[step].inputs if step in manifests else {}
        for name, value in inputs.items():
            known_as = PARAMETER_PREFIXES[step] + name
            if known_as not in NO_SETTINGS and not _is_of_this_run(value, run_id):
                parameters[RENAMED.get(known_as, known_as)] = value
    return parameters


def _is_of_this_run(value: Any, run_id: str) -> bool:
    """Return whether an input is a file of the run itself: its hash, or its place."""
    return isinstance(value, str) and (DIGEST.fullmatch(value) is not None or f"/runs/{run_id}/" in value)


def _data(run: Path, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return where the rows came from and what became of them, as far as is known."""
    data: dict[str, Any] = {}
    for step, (file, names) in DATA_OF_STEPS.items():
        if step in manifests:
            content = _read(run / step / file)
            data |= {name: content[name] for name in names if content.get(name) is not None}
    return data


def _sha256(manifests: Mapping[str, Manifest], name: str) -> str | None:
    """Return the hash of a file of the tokenized rows."""
    files = manifests["processed"].files if "processed" in manifests else ()
    return next((file.sha256 for file in files if file.name == name), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise WorkspaceError(f"{path}: cannot be read ({error}). Run the step again.") from error


def _loss(run: Path) -> tuple[LossPoint, ...]:
    """Return the loss of every step; of a training that was stopped or still runs, as far as it came."""
    for folder in ("training", "training.partial"):
        if (path := run / folder / METRICS_NAME).is_file():
            # The last line of a file that is being written may be a part of one.
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            return tuple(_point(path, line) for line in whole.splitlines())
    return ()


def _point(path: Path, line: bytes) -> LossPoint:
    try:
        metrics = orjson.loads(line)
        # JSON has no number for what is none.
        return LossPoint(step=metrics["step"], loss=math.nan if metrics["loss"] is None else metrics["loss"])
    except (ValueError, TypeError, KeyError) as error:
        raise WorkspaceError(f"{path}: not a metrics file of this version ({error}). Train again.") from error
