"""What the pipeline's steps hand to the evaluation: plain parameters in, a checked configuration out.

Two steps evaluate: the baseline before the training and the comparison after it. Both make their configuration here,
from the same parameters, so that the second finds under the same keys what the first has measured. The limits of the
gate are checked before the training too, although only the second step applies them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from osft.data.files import PROCESSING_REPORT_NAME, SOURCE_NAME, VALIDATION_REPORT_NAME
from osft.errors import ConfigError, EvaluationError
from osft.evaluation.ancestry import Ancestry
from osft.evaluation.config import Backend, EvaluationConfig, split_names
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.file_hashes import sha256_of_path
from osft.workspace import PVC_SCHEME, Manifest, Workspace, as_json, read_json

INPUTS_THAT_ARE_NO_SETTINGS = ("model_path", "processed", "protected_text")
"""Of a training: the base model, which the report names anyway, and hashes of files."""

ROWS_OF_VALIDATION = ("rows_in", "rows_valid", "rows_quarantined", "rows_duplicated")
ROWS_OF_PROCESSING = ("rows_train", "rows_holdout", "rows_dropped_too_long", "rows_truncated")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationParameters:
    """The parameters ``eval_*`` of the pipeline, in the types that KFP hands over."""

    tasks: str
    """Names, separated by commas, as in ``target_tasks``."""

    target_tasks: str
    include_path: str
    """A path or ``pvc://``; empty: none. The same holds for ``probe``."""

    num_fewshot: str
    """A whole number, or ``auto`` for each task's own."""

    limit: int
    """0: all documents."""

    batch_size: int
    """0: what fits."""

    apply_chat_template: bool
    generation: Mapping[str, Any]
    probe: str
    backend: str
    max_forgetting: float
    max_cumulative_forgetting: float
    task_limits: Mapping[str, float]
    min_target_gain: float
    seed: int


def make_config(
    parameters: EvaluationParameters, workspace: Workspace, *, processed: Path, ancestry: Ancestry
) -> EvaluationConfig:
    """Return the configuration that the parameters stand for.

    Args:
        parameters: as the pipeline got them.
        workspace: where ``pvc://`` paths are looked up.
        processed: folder of the tokenized rows; those held out are evaluated if there are any.
        ancestry: the versions that the base descends from.

    Raises:
        ConfigError: if a value is not allowed, or the backend is one that cannot reach the trained model.
        MissingPathError: if a ``pvc://`` path or the folder of a version does not exist.
        WorkspaceError: if the folder of a version lies outside of the workspace.
    """
    if parameters.backend == "openai":
        raise ConfigError(
            "eval_backend is 'openai', but no server has the model that this run trains. Give hf or vllm; "
            "osft evaluate compares two models that servers have."
        )
    has_holdout = read_json(processed / PROCESSING_REPORT_NAME)["rows_holdout"] > 0
    return EvaluationConfig(
        tasks=split_names(parameters.tasks),
        target_tasks=split_names(parameters.target_tasks),
        include_path=_path(parameters.include_path, workspace),
        holdout=processed if has_holdout else None,
        earlier_holdouts=_folders(ancestry.earlier_holdouts, workspace),
        base_version=ancestry.parent,
        ancestor_measurements=_folders(ancestry.ancestor_measurements, workspace),
        # A base that is no version is the origin itself.
        origin=_origin(ancestry.origin, workspace) if ancestry.parent else None,
        probe=_path(parameters.probe, workspace),
        num_fewshot=_shots(parameters.num_fewshot),
        limit=parameters.limit or None,
        batch_size=parameters.batch_size or "auto",
        apply_chat_template=parameters.apply_chat_template,
        generation=parameters.generation,
        # The configuration refuses any other text.
        backend=cast(Backend, parameters.backend),
        max_forgetting=parameters.max_forgetting,
        max_cumulative_forgetting=parameters.max_cumulative_forgetting,
        task_limits=parameters.task_limits,
        min_target_gain=parameters.min_target_gain,
        seed=parameters.seed,
    )


def describe_inputs(base: str, config: EvaluationConfig) -> dict[str, Any]:
    """Return what determines an evaluation besides models and rows, with the content of the user's tasks and probe.

    Raises:
        MissingPathError: if ``include_path`` or ``probe`` does not exist.
    """
    return {
        **as_json(config),
        "base": base,
        "include_path_sha256": config.include_path and sha256_of_path(config.include_path),
        "probe_sha256": config.probe and sha256_of_path(config.probe),
    }


def training_settings(training: Manifest) -> dict[str, Any]:
    """Return how a model was trained, for the report: the parameters of its step."""
    return {name: value for name, value in training.inputs.items() if name not in INPUTS_THAT_ARE_NO_SETTINGS}


def data_summary(run: Path) -> dict[str, Any]:
    """Return where a run's rows came from and what became of them, for the report.

    Args:
        run: folder of the run, with the data steps' reports.
    """
    source = read_json(run / "raw" / SOURCE_NAME)
    validation = read_json(run / "valid" / VALIDATION_REPORT_NAME)
    processing = read_json(run / "processed" / PROCESSING_REPORT_NAME)
    return {
        "uri": source["uri"],
        **{name: validation[name] for name in ROWS_OF_VALIDATION},
        **{name: processing[name] for name in ROWS_OF_PROCESSING},
        "train_tokens": processing["train"]["tokens"],
    }


def fail_unless_passed(report: ForgettingReport, page: Path) -> None:
    """Raise if the tuned model did not pass; ``page`` is the file that tells more.

    Raises:
        EvaluationError: with the reasons.
    """
    if not report.passed:
        raise EvaluationError(f"the tuned model did not pass: {' '.join(report.reasons)} The report is {page}.")


def _path(reference: str, workspace: Workspace) -> Path | None:
    return Path(workspace.locate(reference)) if reference else None


def _folders(relative: Mapping[str, str], workspace: Workspace) -> dict[str, Path]:
    return {name: workspace.resolve(folder) for name, folder in relative.items()}


def _origin(reference: str, workspace: Workspace) -> str:
    """Return where the origin is, or was: it may be gone, and is needed only for what is not known of it."""
    relative = reference.removeprefix(PVC_SCHEME)
    return reference if relative == reference else str(workspace.root / relative)


def _shots(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"eval_num_fewshot is '{text}'. Give a whole number from 0, or auto.")
    return int(text)
