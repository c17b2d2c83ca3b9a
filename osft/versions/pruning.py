"""Keeping the storage bounded: old versions lose their weights, and old runs go.

What is left of a pruned version is small and is what later runs need: its lineage, the rows that it held out, what it
scored, the hashes of what it has seen.

A pruning announces what it is about to do, looks again whether anything has come to need the version, and only then
lets it count as pruned and deletes its weights. Who begins to need a version takes the announcements back. So a version
that is needed never counts as pruned, and a pruning that is killed is finished by the next one or leaves no trace.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from osft.errors import ConfigError, WorkspaceError
from osft.versions.folders import (
    MEMORY_FOLDER,
    PRUNED_NAME,
    PRUNING_NAME,
    announce_pruning,
    claim_weights,
    partial_name,
    published_versions,
    pvc_reference,
    relative_path,
    run_of_partial,
    settle_pruning,
    version_number,
    versions_folder,
)
from osft.versions.journal import Journal, promoted_models
from osft.versions.lineage import read_lineage
from osft.versions.removal import delete, left_aside, remove_folder, size_of
from osft.versions.runs import RUNS_FOLDER, runs_of, stillborn_runs
from osft.workspace import MANIFEST_NAME, Manifest, Workspace

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedItem:
    """Something that was removed."""

    path: str
    """Relative to the workspace; of a version only the weights and the memory are gone."""

    size_bytes: int
    """What this freed; a file that has another name elsewhere counts where its last one goes."""


def prune(workspace: Workspace, model_name: str, *, keep_versions: int, keep_runs: int) -> list[PrunedItem]:
    """Remove what is old of one model: weights of its versions, and folders of its runs.

    Never removed are the weights of the current version, of its parent, of a version from which a run starts that is
    under way, and of one with which the chain of another model began; nor a run that is under way.

    Args:
        workspace: where models and runs are.
        model_name: folder name below ``models``; runs of other models stay.
        keep_versions: how many of the newest versions keep their weights; 0 keeps all.
        keep_runs: how many of the newest finished runs keep their folder; 0 keeps all, also those that were given up
            before it was known of which model they are.

    Returns:
        What was removed.

    Raises:
        ConfigError: if a number is negative.
    """
    for name, number in (("keep_versions", keep_versions), ("keep_runs", keep_runs)):
        if number < 0:
            raise ConfigError(f"{name} is {number}. Give a whole number from 0, which keeps all.")
    now = time.time()
    removed = [
        *_prune_runs(workspace, model_name, keep_runs, now),
        *_prune_versions(workspace, model_name, keep_versions, now),
        *_remove_leftovers(workspace, model_name),
    ]
    for item in removed:
        logger.info("removed %s, %s", item.path, decimal(item.size_bytes))
    return removed


def pruned_as_markdown(removed: Sequence[PrunedItem]) -> str:
    """Return what was removed, for people to read."""
    if not removed:
        return "Nothing was removed.\n"
    lines = [f"| {item.path} | {decimal(item.size_bytes)} |" for item in removed]
    total = decimal(sum(item.size_bytes for item in removed))
    return "\n".join(["| removed | size |", "|---|---:|", *lines, f"| all | {total} |", ""])


def _prune_runs(workspace: Workspace, model_name: str, keep: int, now: float) -> Iterator[PrunedItem]:
    runs = [run for run in runs_of(workspace) if run.base.model_name == model_name]
    finished = [run for run in runs if not run.is_under_way(now=now)]
    folders = [*(run.folder for run in finished[keep:]), *stillborn_runs(workspace, now=now)]
    for folder in folders if keep else ():
        yield from _remove(workspace, folder)


def _prune_versions(workspace: Workspace, model_name: str, keep: int, now: float) -> Iterator[PrunedItem]:
    """Empty the versions beyond the newest, and those of which a killed pruning has left some weights."""
    folder = versions_folder(workspace, model_name)
    promoted = {entry.version for entry in Journal(workspace, model_name).entries()}
    versions = sorted(promoted, key=version_number, reverse=True)
    old = set(versions[keep:] if keep else ())
    for version in (folder / name for name in versions):
        is_pruned = (version / PRUNED_NAME).exists()
        if (version.name in old or is_pruned) and _weights(version) and (is_pruned or _settle(workspace, version, now)):
            yield _delete_weights(workspace, version)


def _settle(workspace: Workspace, version: Path, now: float) -> bool:
    """Let a version count as pruned unless it is needed; return whether its weights may go."""
    if version.name in _needed_versions(workspace, version.parent.name, now):
        return False
    announcement = announce_pruning(version)
    # A rollback or a run that began since is seen here, or else sees the announcement and takes it back.
    if version.name in _needed_versions(workspace, version.parent.name, now):
        claim_weights(version)
        return False
    return settle_pruning(announcement)


def _needed_versions(workspace: Workspace, model_name: str, now: float) -> set[str]:
    """Return the current version, its parent, and every version that a run under way or another model refers to."""
    # Runs first: what one of them starts from becomes, with its promotion, the parent or the origin that is read next.
    under_way = [run.base for run in runs_of(workspace) if run.is_under_way(now=now)]
    references = {reference for base in under_way for reference in (base.model, base.origin)}
    references |= set(_origins_of_others(workspace, model_name))
    current = Journal(workspace, model_name).current()
    parent = read_lineage(workspace, model_name, current).parent if current else None
    folder = versions_folder(workspace, model_name)
    in_use = {name for name in published_versions(folder) if pvc_reference(workspace, folder / name) in references}
    return in_use | {name for name in (current, parent) if name}


def _origins_of_others(workspace: Workspace, model_name: str) -> Iterator[str]:
    """Yield what the chains of other models began with: their evaluations may ask it again."""
    for other in promoted_models(workspace):
        current = Journal(workspace, other).current()
        if other != model_name and current:
            yield read_lineage(workspace, other, current).origin


def _weights(version: Path) -> list[Path]:
    """Return what pruning deletes of a version."""
    files = [path for pattern in WEIGHT_FILES for path in version.glob(pattern)]
    return [*files, *version.glob(MEMORY_FOLDER)]


def _delete_weights(workspace: Workspace, version: Path) -> PrunedItem:
    item = PrunedItem(path=relative_path(workspace, version), size_bytes=size_of(*_weights(version)))
    for path in (*_weights(version), *version.glob(f"{PRUNING_NAME}*")):
        if path.is_dir():
            delete(path)
        else:
            path.unlink(missing_ok=True)
    return item


def _remove_leftovers(workspace: Workspace, model_name: str) -> Iterator[PrunedItem]:
    """Remove what killed removals left, and what killed promotions left whose run is gone, so that none goes on."""
    folder = versions_folder(workspace, model_name)
    promoted = {entry.version for entry in Journal(workspace, model_name).entries()}
    for path in (*left_aside(workspace.root / RUNS_FOLDER), *left_aside(folder)):
        yield from _remove(workspace, path)
    for partial in folder.glob(partial_name("*", "*")):
        if not workspace.run_directory(run_of_partial(partial.name)).exists():
            yield from _remove(workspace, partial)
    for version in (folder / name for name in published_versions(folder) if name not in promoted):
        run_id = _run_of_version(version)
        if run_id and not workspace.run_directory(run_id).exists():
            yield from _remove(workspace, version)


def _run_of_version(version: Path) -> str | None:
    """Return the run whose version this is; None if another process has removed it since it was listed."""
    try:
        run_id: str = Manifest.load(version / MANIFEST_NAME).inputs["run_id"]
    except WorkspaceError:
        if (version / MANIFEST_NAME).exists():
            raise
        return None
    return run_id


def _remove(workspace: Workspace, folder: Path) -> Iterator[PrunedItem]:
    """Remove a folder; nothing is yielded if another process was faster."""
    item = PrunedItem(path=relative_path(workspace, folder), size_bytes=size_of(folder))
    if remove_folder(folder):
        yield item
