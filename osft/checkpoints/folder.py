"""The folders of a run's checkpoints: which are there, which are whole, and how one appears and goes.

    <ckpt_output_dir>/checkpoints/step_<n>/     one checkpoint: torch.distributed.checkpoint's files, and the marker
    <ckpt_output_dir>/checkpoints/bases/        what never changes in a run, written with the first checkpoint
    <ckpt_output_dir>/checkpoints/*.partial     being written or removed, read by nothing

A folder is filled under its partial name. The marker, with size and sha256 of every other file, is written last; then
the folder gets its name, by a rename. It is removed in the other order. So a process may be killed at any moment, and
what has a folder's name is whole, unless the disk lost or changed bytes, which the marker tells. Only plain files and
renames are used: the folder may lie on a network volume.
"""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osft.content_cache import content_key
from osft.errors import one_line
from osft.workspace import ManifestFile, as_json, read_json, replace_directory, sha256_of_file, write_json

logger = logging.getLogger(__name__)

FOLDER_NAME = "checkpoints"
BASES_NAME = "bases"
MARKER_NAME = "complete.json"
PARTIAL_SUFFIX = ".partial"
STEP_FOLDER = re.compile(r"step_\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What makes a folder complete."""

    identity: Mapping[str, Any]
    """What a run must share to go on from here (:mod:`osft.checkpoints.identity`)."""

    files: tuple[ManifestFile, ...]
    """Every other file of the folder."""

    details: Mapping[str, Any]
    """What else is known, as JSON; of a checkpoint ``step``, ``epoch``, ``seconds`` and ``world_size``."""

    def save(self, folder: Path) -> None:
        """Write the marker into ``folder``, with a checksum of its own."""
        content = as_json(asdict(self))
        write_json(folder / MARKER_NAME, {"content": content, "sha256": content_key(content)})

    @classmethod
    def load(cls, folder: Path) -> "Marker | None":
        """Read the marker in ``folder``; ``None`` if there is none, or not as it was written."""
        try:
            saved = read_json(folder / MARKER_NAME)
            content = saved["content"]
            if saved["sha256"] != content_key(content):
                return None
            files = tuple(ManifestFile(**file) for file in content["files"])
            return cls(identity=content["identity"], files=files, details=content["details"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def step_folders(root: Path) -> list[Path]:
    """Return the folders of checkpoints in ``root``, the newest first; a folder's name says its step."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the optimizer steps that the checkpoint in ``folder`` has behind it."""
    return int(folder.name.removeprefix("step_"))


def partial_folder(target: Path) -> Path:
    """Return the name under which ``target`` is filled."""
    return target.with_name(target.name + PARTIAL_SUFFIX)


def complete(target: Path, marker: Marker) -> None:
    """Mark the partial folder of ``target``, whose files are on disk, and give it its name."""
    partial = partial_folder(target)
    marker.save(partial)
    # One of that name is a damaged one, from before the run passed that step again.
    replace_directory(partial, target)


def damages(folder: Path, files: Iterable[ManifestFile]) -> list[str]:
    """Return a line for each of ``files`` that ``folder`` does not hold as it was written."""
    return [line for file in files if (line := _damage(folder / file.name, file))]


def _damage(path: Path, file: ManifestFile) -> str | None:
    try:
        if path.stat().st_size != file.size_bytes:
            return f"{path.name} has {path.stat().st_size} bytes, not {file.size_bytes}"
        return None if sha256_of_file(path) == file.sha256 else f"{path.name} has other bytes than were written"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def remove(folder: Path) -> None:
    """Remove ``folder`` so that no moment shows a part of it under its name."""
    partial = partial_folder(folder)
    folder.replace(partial)
    shutil.rmtree(partial)


def remove_unfinished(root: Path) -> None:
    """Remove what a killed process left of writing, replacing or removing a folder in ``root``."""
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_dir() and path.name != BASES_NAME and not STEP_FOLDER.fullmatch(path.name):
            shutil.rmtree(path)


def remove_older(root: Path, keep: int) -> None:
    """Remove all checkpoints in ``root`` but the newest ``keep``."""
    for folder in step_folders(root)[keep:]:
        remove(folder)


def remove_all(root: Path) -> None:
    """Remove all checkpoints; what a network volume keeps of files that are open elsewhere is a warning."""
    try:
        if root.is_dir():
            shutil.rmtree(root)
    except OSError as error:
        logger.warning("%s: cannot be removed (%s); remove it by hand", root, one_line(error))
