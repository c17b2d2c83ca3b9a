"""Publishing a model that passed: an immutable version folder, and then the swap that makes it the current one.

A version carries beside its weights what the runs after it need: the subspace memory, the rows that its run held out
as a permanent task, what it scored on every task, and the hashes of the rows that its run has seen.

Folder first, journal second: a version that the journal names is whole. A promotion that is killed at any moment goes
on when it is called again, and one that lost the race to another run removes its folder.
"""

import itertools
import logging
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osft.data.files import HELD_OUT_ROWS_NAME, SEEN_ROWS_NAME, TAKEN_ROWS_NAME, TOO_LONG_ROWS_NAME
from osft.errors import WorkspaceError
from osft.versions.base_model import BaseModel
from osft.versions.folders import (
    MEASUREMENTS_FOLDER,
    MEMORY_FOLDER,
    ORIGIN_FOLDER,
    partial_name,
    published_versions,
    relative_path,
    version_name,
    version_number,
    versions_folder,
)
from osft.versions.journal import Journal, LostRaceError
from osft.versions.origin import keep_origin
from osft.versions.removal import remove_folder
from osft.versions.retention_tasks import keep_holdout, keep_measurements
from osft.versions.run_record import MEASUREMENTS_OF_BASE, MEASUREMENTS_OF_TUNED, RunRecord
from osft.workspace import (
    MANIFEST_NAME,
    Manifest,
    ManifestFile,
    Workspace,
    describe_files,
    safe_name,
    sha256_of_file,
    sync_directory,
)

logger = logging.getLogger(__name__)

FINAL_FOLDER = "final"
"""Of the training step: the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Promotion:
    """One run's model on its way to be a version."""

    base: BaseModel
    training: Manifest
    record: RunRecord

    @property
    def versions(self) -> Path:
        return versions_folder(self.record.workspace, self.base.model_name)

    @property
    def journal(self) -> Journal:
        return Journal(self.record.workspace, self.base.model_name)

    @property
    def inputs(self) -> dict[str, str]:
        """By these a version is known as this training's."""
        return {"run_id": self.record.run_id, "training": self.training.fingerprint}


def promote_model(
    workspace: Workspace, *, run_id: str, model_name: str, base: Manifest, training: Manifest, evaluation: Manifest
) -> Manifest:
    """Publish the final model of a run as the next version of ``model_name``, and make that the current one.

    A training that is promoted already is not promoted again: the manifest of its version is returned.

    Args:
        workspace: where the run and the models are.
        run_id: id of the run.
        model_name: folder name below ``models``.
        base: manifest of the step that resolved what the run starts from.
        training: manifest of the training step, whose ``final`` is published.
        evaluation: manifest of the evaluation step that let it pass.

    Returns:
        The manifest of the version.

    Raises:
        LostRaceError: if another version became current since the run began; nothing is left of this one.
        WorkspaceError: if the name cannot be a folder or is not the one that the run began with, the evaluation is of
            another training or did not let it pass, or the model is not what the training step left.
    """
    record = RunRecord.read(workspace, run_id=run_id, training=training, evaluation=evaluation)
    pinned = BaseModel.load(workspace.resolve(base.path))
    if safe_name(model_name, what="model name") != pinned.model_name:
        raise WorkspaceError(
            f"run '{run_id}' began as one of '{pinned.model_name}' and cannot be promoted as '{model_name}'. "
            "Start a new run with the name that you want."
        )
    promotion = _Promotion(base=pinned, training=training, record=record)
    promotion.versions.mkdir(parents=True, exist_ok=True)
    version = _promoted(promotion) or _promote(promotion)
    _add_to_parent(promotion, version.name)
    promotion.journal.name_latest()
    _remove_partials(promotion)
    return Manifest.load(version / MANIFEST_NAME)


def _promoted(promotion: _Promotion) -> Path | None:
    """Return the folder of the version as which this training is promoted already."""
    entry = promotion.journal.promotion_of(promotion.record.run_id)
    version = promotion.versions / entry.version if entry else None
    return version if version in _published(promotion) else None


def _published(promotion: _Promotion) -> list[Path]:
    """Return the folders of this training that are whole, whether they were promoted or not."""
    folders = [promotion.versions / name for name in published_versions(promotion.versions)]
    return [folder for folder in folders if Manifest.load(folder / MANIFEST_NAME).inputs == promotion.inputs]


def _promote(promotion: _Promotion) -> Path:
    """Publish the folder, unless an earlier try has, and swap; return the folder that is promoted.

    Raises:
        LostRaceError: if another version is current than when the run began; this training's folders are gone.
    """
    try:
        # Before a model is copied that would lose; what counts is the swap.
        promotion.journal.check(promotion.base.current)
        version = next(iter(_published(promotion)), None) or _publish(promotion)
        promotion.journal.replace(
            promotion.base.current, version.name, reason="promotion", run_id=promotion.record.run_id
        )
    except LostRaceError:
        # Of two pods of one run, one retried while the other was taken for lost, the faster has done the work.
        faster = _promoted(promotion)
        for folder in _published(promotion):
            if folder != faster:
                remove_folder(folder)
        if faster is None:
            _remove_partials(promotion)
            raise
        return faster
    logger.info("models/%s: %s is the current version", promotion.base.model_name, version.name)
    return version


def _publish(promotion: _Promotion) -> Path:
    """Put the version together beside its final place, and give it the first number that is free."""
    # With the host's name: a pod that is retried while its lost predecessor still writes has a folder of its own.
    partial = promotion.versions / partial_name(promotion.record.run_id, socket.gethostname())
    if partial.exists():
        shutil.rmtree(partial)
    model = _copy_model(promotion, partial)
    processed = promotion.record.folder("processed")
    keep_holdout(processed, partial)
    shutil.copyfile(processed / TAKEN_ROWS_NAME, partial / SEEN_ROWS_NAME)
    for name in (HELD_OUT_ROWS_NAME, TOO_LONG_ROWS_NAME):
        shutil.copyfile(processed / name, partial / name)
    for number in itertools.count(_highest_number(promotion) + 1):
        version = promotion.versions / version_name(number)
        _describe(promotion, partial, version, model)
        _sync(partial)
        try:
            # A rename onto a folder that is not empty fails: of two runs that took one number, one tries the next.
            partial.rename(version)
        except OSError:
            if not version.exists():
                raise
            continue
        sync_directory(promotion.versions)
        break
    logger.info("published %s", version)
    return version


def _sync(folder: Path) -> None:
    """Bring all files of a folder to the disk: a version that has its name is whole, also after a power failure."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _highest_number(promotion: _Promotion) -> int:
    """Return the highest number that a folder or the journal remembers: no name ever means two models."""
    entries = promotion.journal.entries()
    names = (*published_versions(promotion.versions), *(entry.version for entry in entries))
    return max(map(version_number, names), default=0)


def _copy_model(promotion: _Promotion, partial: Path) -> tuple[ManifestFile, ...]:
    """Copy the weights, and the memory if there is one, and return what was copied.

    Raises:
        WorkspaceError: if it is not what the training step left.
    """
    training = promotion.record.workspace.resolve(promotion.training.path)
    shutil.copytree(training / FINAL_FOLDER, partial)
    if (training / MEMORY_FOLDER).is_dir():
        shutil.copytree(training / MEMORY_FOLDER, partial / MEMORY_FOLDER)
    copied = describe_files(partial)
    folders = (f"{FINAL_FOLDER}/", f"{MEMORY_FOLDER}/")
    left = {file.name: file.sha256 for file in promotion.training.files if file.name.startswith(folders)}
    found = {_name_in_training(file.name): file.sha256 for file in copied}
    if different := sorted(name for name, _ in left.items() ^ found.items()):
        raise WorkspaceError(
            f"{promotion.training.path}/{different[0]} is not what the training step left. Run the training again."
        )
    return copied


def _name_in_training(name: str) -> str:
    """Return what a file of the version is called in the training step's folder."""
    return name if name.startswith(f"{MEMORY_FOLDER}/") else f"{FINAL_FOLDER}/{name}"


def _describe(promotion: _Promotion, partial: Path, version: Path, model: Sequence[ManifestFile]) -> None:
    """Write what tells of the version by its name: measurements, lineage, its origin's if it is the first, manifest."""
    if (measurements := partial / MEASUREMENTS_FOLDER).exists():
        shutil.rmtree(measurements)
    measured = promotion.record.folder("evaluation") / MEASUREMENTS_OF_TUNED
    keep_measurements(measured, measurements, version=version.name)
    promotion.record.lineage_as(version.name, promotion.base).save(partial)
    if promotion.base.parent is None:
        keep_origin(promotion.record, promotion.base, version=version.name, folder=partial / ORIGIN_FOLDER)
    Manifest(
        path=relative_path(promotion.record.workspace, version),
        files=_with_new_files(partial, model),
        inputs=promotion.inputs,
    ).save(partial / MANIFEST_NAME)


def _with_new_files(partial: Path, model: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
    """Return all files but the manifest, in the order of names; the model's are large and hashed already."""
    known = {file.name for file in model} | {MANIFEST_NAME}
    paths = {path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()}
    new = [
        ManifestFile(name=name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
        for name, path in paths.items()
        if name not in known
    ]
    return tuple(sorted([*model, *new], key=lambda file: file.name))


def _add_to_parent(promotion: _Promotion, version: str) -> None:
    """Keep what the parent answered to tasks that were added after it, with its other answers; nothing is replaced."""
    if promotion.base.parent is not None:
        measured = promotion.record.folder("evaluation") / MEASUREMENTS_OF_BASE
        keep_measurements(measured, promotion.versions / promotion.base.parent / MEASUREMENTS_FOLDER, version=version)


def _remove_partials(promotion: _Promotion) -> None:
    """Remove what killed tries of this run left, on other machines too."""
    for partial in promotion.versions.glob(partial_name(promotion.record.run_id, "*")):
        remove_folder(partial)
