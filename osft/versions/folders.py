"""The names of a model's versions on the workspace.

    <workspace>/models/<model_name>/v0001/          a version; a folder is one once it has a manifest
    <workspace>/models/<model_name>/v0001/origin/   of the first of a chain: what the origin scored, called v0000

Numbers are never given twice while anything remembers them: the next one is above every folder and every entry of
the journal.
"""

import os
import re
import tempfile
from pathlib import Path

from osft.errors import MissingPathError
from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.lookup import describe_near
from osft.workspace import MANIFEST_NAME, PVC_SCHEME, Workspace, safe_name, sync_directory

VERSION = re.compile(r"v(\d{4,})")
HOLDOUT_FOLDER = "holdout"
MEASUREMENTS_FOLDER = "measurements"
MEMORY_FOLDER = "memory"
ORIGIN_FOLDER = "origin"
"""In the first version of a chain: lineage and measurements of what it was trained from."""

PRUNED_NAME = "pruned"
"""There before the weights of a version are deleted; from then on it has none."""

PRUNING_NAME = ".pruning."
"""Begins the name of a file by which a pruning says what it is about to do."""


def versions_folder(workspace: Workspace, model_name: str) -> Path:
    """Return the folder of a model's versions, which need not exist.

    Raises:
        WorkspaceError: if ``model_name`` cannot be a folder name.
    """
    return workspace.models / safe_name(model_name, what="model name")


def check_model(workspace: Workspace, model_name: str) -> None:
    """Refuse the name of a model of which no run was ever promoted.

    Raises:
        MissingPathError: with the names that there are.
    """
    if not versions_folder(workspace, model_name).is_dir():
        known = [path.name for path in workspace.models.iterdir()] if workspace.models.is_dir() else []
        raise MissingPathError(
            f"model '{model_name}': nothing is promoted under this name in {workspace.root}. "
            f"{describe_near(model_name, known)}"
        )


def version_name(number: int) -> str:
    """Return the name of version ``number``."""
    return f"v{number:04d}"


def version_number(name: str) -> int:
    """Return the number in a version's name."""
    return int(name[1:])


def published_versions(folder: Path) -> list[str]:
    """Return the versions whose folders are whole, oldest first, without the origin."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.name != ORIGIN_VERSION]
    return sorted((name for name in names if (folder / name / MANIFEST_NAME).is_file()), key=version_number)


def partial_name(run_id: str, host: str) -> str:
    """Return the name of the folder in which a run's version is put together; ``@`` is in no run's id."""
    return f".{run_id}@{host}.partial"


def run_of_partial(name: str) -> str:
    """Return the run that a folder of :func:`partial_name` belongs to."""
    return name[1:].partition("@")[0]


def has_weights(version: Path) -> bool:
    """Return whether a version can still be loaded."""
    return not (version / PRUNED_NAME).exists() and any(version.glob("*.safetensors"))


def announce_pruning(version: Path) -> Path:
    """Leave a file that says that the weights of a version are about to go; return it for :func:`settle_pruning`."""
    descriptor, announcement = tempfile.mkstemp(dir=version, prefix=PRUNING_NAME)
    os.close(descriptor)
    return Path(announcement)


def settle_pruning(announcement: Path) -> bool:
    """Let a version count as pruned, unless the announcement was taken back; return whether it does.

    One rename does it, so of this and :func:`claim_weights` exactly one has its way.
    """
    try:
        announcement.rename(announcement.with_name(PRUNED_NAME))
    except FileNotFoundError:
        return False
    sync_directory(announcement.parent)
    return True


def claim_weights(version: Path) -> bool:
    """Take back every announced pruning of a version; return whether it has its weights, and keeps them.

    To be called once it can be seen on the workspace that the version is needed: a pruning that is announced later
    sees it too.
    """
    for announcement in version.glob(f"{PRUNING_NAME}*"):
        announcement.unlink(missing_ok=True)
    return has_weights(version)


def relative_path(workspace: Workspace, path: Path) -> str:
    """Return a path on the workspace as manifests name it: relative to the workspace's folder."""
    return path.relative_to(workspace.root).as_posix()


def pvc_reference(workspace: Workspace, path: Path) -> str:
    """Return a path on the workspace as the ``pvc://`` reference that every step understands."""
    return f"{PVC_SCHEME}{relative_path(workspace, path)}"
