"""Keeping the storage bounded: old versions lose their weights, and old runs go.

What is left of a pruned version is small and is what later runs need: its lineage, the rows that it held out, what it
scored, the hashes of what it has seen. A version is marked as pruned first; from then on nothing starts from it, and
its weights are deleted. A killed pruning is finished by the next one.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from osft.errors import ConfigError
from osft.versions.folders import (
    MEMORY_FOLDER,
    PRUNED_NAME,
    partial_name,
    published_versions,
    pvc_reference,
    run_of_partial,
    version_number,
    versions_folder,
)
from osft.versions.journal import Journal
from osft.versions.lineage import read_lineage
from osft.versions.removal import delete, left_aside, remove_folder, size_of
from osft.versions.runs import RUNS_FOLDER, runs_of
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, read_json, write_json

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedItem:
    """Something that was removed."""

    path: str
    """Relative to the workspace; of a version only the weights and the memory are gone."""

    size_bytes: int


def prune(workspace: Workspace, model_name: str, *, keep_versions: int, keep_runs: int) -> list[PrunedItem]:
    """Remove what is old of one model: weights of its versions, and folders of its runs.

    Never removed are the weights of the current version, of its parent, and of a version from which a run starts that
    is under way; nor a run that is under way.

    Args:
        workspace: where models and runs are.
        model_name: folder name below ``models``; runs of other models stay.
        keep_versions: how many of the newest versions keep their weights; 0 keeps all.
        keep_runs: how many of the newest finished runs keep their folder; 0 keeps all.

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
    for run in finished[keep:] if keep else ():
        yield _remove(workspace, run.folder)


def _prune_versions(workspace: Workspace, model_name: str, keep: int, now: float) -> Iterator[PrunedItem]:
    """Empty the versions beyond the newest, and those that a killed pruning has marked."""
    folder = versions_folder(workspace, model_name)
    promoted = {entry.version for entry in Journal(workspace, model_name).entries()}
    versions = sorted(promoted, key=version_number, reverse=True)
    old = set(versions[keep:] if keep else ())
    for version in (folder / name for name in versions):
        is_marked = (version / PRUNED_NAME).exists()
        if (version.name in old or is_marked) and _weights(version) and _mark(workspace, version, now):
            yield _delete_weights(workspace, version)


def _mark(workspace: Workspace, version: Path, now: float) -> bool:
    """Mark a version as pruned unless it is needed; return whether its weights may go.

    The mark keeps anything new from starting from the version. Only then is it known who still needs it: a rollback or
    a run may have been a moment faster. Once that is settled, it is settled for a pruning that goes on after this one.
    """
    mark = version / PRUNED_NAME
    if mark.exists() and read_json(mark)["settled"]:
        return True
    write_json(mark, {"settled": False})
    if version.name in _needed_versions(workspace, version.parent.name, now):
        mark.unlink(missing_ok=True)
        return False
    write_json(mark, {"settled": True})
    return True


def _needed_versions(workspace: Workspace, model_name: str, now: float) -> set[str]:
    """Return the current version, its parent, and every version from which a run starts that is under way."""
    current = Journal(workspace, model_name).current()
    parent = read_lineage(workspace, model_name, current).parent if current else None
    models = {run.base.model for run in runs_of(workspace) if run.is_under_way(now=now)}
    folder = versions_folder(workspace, model_name)
    in_use = {name for name in published_versions(folder) if pvc_reference(workspace, folder / name) in models}
    return in_use | {name for name in (current, parent) if name}


def _weights(version: Path) -> list[Path]:
    """Return what pruning deletes of a version."""
    files = [path for pattern in WEIGHT_FILES for path in version.glob(pattern)]
    return [*files, *version.glob(MEMORY_FOLDER)]


def _delete_weights(workspace: Workspace, version: Path) -> PrunedItem:
    item = PrunedItem(path=_relative(workspace, version), size_bytes=sum(map(size_of, _weights(version))))
    for path in _weights(version):
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
        yield _remove(workspace, path)
    for partial in folder.glob(partial_name("*", "*")):
        if not workspace.run_directory(run_of_partial(partial.name)).exists():
            yield _remove(workspace, partial)
    for version in (folder / name for name in published_versions(folder) if name not in promoted):
        if not workspace.run_directory(Manifest.load(version / MANIFEST_NAME).inputs["run_id"]).exists():
            yield _remove(workspace, version)


def _remove(workspace: Workspace, folder: Path) -> PrunedItem:
    item = PrunedItem(path=_relative(workspace, folder), size_bytes=size_of(folder))
    remove_folder(folder)
    return item


def _relative(workspace: Workspace, path: Path) -> str:
    return path.relative_to(workspace.root).as_posix()
