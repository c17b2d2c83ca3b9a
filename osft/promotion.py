"""Publishing a model that passed: an immutable version folder with the story of how it came to be.

<workspace>/models/<model_name>/v0001/   the model and lineage.json
<workspace>/models/<model_name>/latest   the newest version's name, replaced atomically
"""

import importlib.metadata
import itertools
import logging
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osft.errors import WorkspaceError
from osft.workspace import (
    MANIFEST_NAME,
    Manifest,
    Workspace,
    atomic_file,
    describe_files,
    read_json,
    safe_name,
    sync_directory,
    write_json,
)

logger = logging.getLogger(__name__)

LINEAGE_NAME = "lineage.json"
LINEAGE_SCHEMA = "osft.lineage/v1"
LATEST_NAME = "latest"
VERSION = re.compile(r"v(\d{4,})")
STEPS_BEFORE = ("raw", "valid", "processed", "baseline", "training", "evaluation")


def promote_model(
    workspace: Workspace, *, run_id: str, model_name: str, training: Manifest, evaluation: Manifest
) -> Manifest:
    """Publish the final model of a run as the next version of ``model_name``.

    A training that is published already is not published again: its version is returned.

    Args:
        workspace: where the run and the models are.
        run_id: id of the run.
        model_name: folder name below ``models``.
        training: manifest of the training step, whose ``final`` is published.
        evaluation: manifest of the evaluation step that let it pass.

    Returns:
        The manifest of the version.

    Raises:
        WorkspaceError: if the name cannot be a folder, the evaluation is of another training or did not let it pass,
            or the model is not what the training step left.
    """
    scores = _passed_scores(workspace, training, evaluation)
    versions = workspace.models / safe_name(model_name, what="model name")
    versions.mkdir(parents=True, exist_ok=True)
    version = _version_of_training(versions, run_id, training)
    if version is None:
        version = _publish(workspace, versions, run_id, training, scores)
        logger.info("published %s", version)
    _name_latest(versions)
    return Manifest.load(version / MANIFEST_NAME)


def _passed_scores(workspace: Workspace, training: Manifest, evaluation: Manifest) -> dict[str, Any]:
    """Return the scores that let the model pass; nothing else may be published."""
    if evaluation.inputs.get("trained") != training.fingerprint:
        raise WorkspaceError(f"{evaluation.path} evaluated another model than {training.path}. Evaluate this one.")
    scores: dict[str, Any] = read_json(workspace.resolve(evaluation.path) / "forgetting.json")
    if scores["passed"] is not True:
        raise WorkspaceError(f"{training.path} did not pass: {' '.join(scores['reasons'])} It is not published.")
    return scores


def _version_of_training(versions: Path, run_id: str, training: Manifest) -> Path | None:
    for number in _version_numbers(versions):
        version = versions / _version_name(number)
        inputs = Manifest.load(version / MANIFEST_NAME).inputs
        if inputs == {"run_id": run_id, "training": training.fingerprint}:
            return version
    return None


def _version_numbers(versions: Path) -> list[int]:
    """Return the numbers that are taken; a folder is a version once it has a manifest."""
    return sorted(
        int(match[1])
        for path in versions.iterdir()
        if (match := VERSION.fullmatch(path.name)) and (path / MANIFEST_NAME).is_file()
    )


def _version_name(number: int) -> str:
    return f"v{number:04d}"


def _publish(workspace: Workspace, versions: Path, run_id: str, training: Manifest, scores: Mapping[str, Any]) -> Path:
    """Copy the model beside its final place, check it, and give it the first version number that is free."""
    partial = versions / f".{safe_name(run_id, what='run id')}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    shutil.copytree(workspace.resolve(f"{training.path}/final"), partial)
    _check_copy(partial, training)
    for number in itertools.count(max(_version_numbers(versions), default=0) + 1):
        version = versions / _version_name(number)
        lineage = _lineage(workspace, run_id, versions.name, version.name, scores)
        write_json(partial / LINEAGE_NAME, lineage)
        path = version.relative_to(workspace.root).as_posix()
        inputs = {"run_id": run_id, "training": training.fingerprint}
        Manifest(path=path, files=describe_files(partial), inputs=inputs).save(partial / MANIFEST_NAME)
        try:
            # A rename onto a folder that is not empty fails: of two runs that took one number, one tries the next.
            partial.rename(version)
        except OSError:
            if not version.exists():
                raise
            continue
        sync_directory(versions)
        break
    return version


def _check_copy(copy: Path, training: Manifest) -> None:
    trained = {file.name: file.sha256 for file in training.files if file.name.startswith("final/")}
    copied = {f"final/{file.name}": file.sha256 for file in describe_files(copy)}
    if different := sorted(name for name, _ in trained.items() ^ copied.items()):
        raise WorkspaceError(
            f"{training.path}/{different[0]} is not what the training step left. Run the training again."
        )


def _lineage(
    workspace: Workspace, run_id: str, model_name: str, version: str, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a reader needs to make the model again and to judge it."""
    run = workspace.run_directory(run_id)
    steps = {step: Manifest.load(run / step / MANIFEST_NAME) for step in STEPS_BEFORE}
    return {
        "schema": LINEAGE_SCHEMA,
        "model_name": model_name,
        "version": version,
        "run_id": run_id,
        "osft_version": importlib.metadata.version("osft-continual-learning"),
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_model": steps["training"].inputs["model_path"],
        "data": read_json(run / "raw" / "source.json"),
        "file_hashes": {step: {file.name: file.sha256 for file in manifest.files} for step, manifest in steps.items()},
        "parameters": {step: manifest.inputs for step, manifest in steps.items()},
        "scores": dict(scores),
    }


def _name_latest(versions: Path) -> None:
    """Write the newest version's name; a version that another run published meanwhile is looked for again."""
    written = 0
    while (newest := max(_version_numbers(versions))) != written:
        with atomic_file(versions / LATEST_NAME, "w") as file:
            file.write(f"{_version_name(newest)}\n")
        written = newest
