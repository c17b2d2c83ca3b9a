"""A finished step of one run as a step of another, without its bytes twice.

A sweep's ratios are trained on the same rows, and the chosen one is the sweep's own result. Each of these runs is
whole for whoever reads it: the files of a shared step have a second name there (hard links; finished files are never
written to). Only the manifest is another one, for it names its own folder; it is as old as the step's, because readers
take its time for the step's end. Whichever run is removed, the others keep their files.
"""

import logging
import os
import shutil
import socket
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from osft.content_cache import link_files
from osft.errors import WorkspaceError
from osft.workspace import MANIFEST_NAME, Manifest, Workspace, finished_manifest, has_size, replace_directory

logger = logging.getLogger(__name__)


def link_step(workspace: Workspace, manifest: Manifest, run_id: str, step: str) -> Manifest:
    """Let a finished step be one of another run, too.

    The folder appears whole, and replaces what another step has left there. What is there already is left, also if
    another pod links the same step at the same moment.

    Args:
        workspace: where both runs are.
        manifest: of the finished step.
        run_id: the other run.
        step: name of the folder in it.

    Returns:
        The manifest in the other run: the same files and inputs at another path.

    Raises:
        WorkspaceError: if a file of the step is not what it left.
    """
    target = workspace.run_directory(run_id) / step
    if finished := _linked(target, manifest):
        return finished
    source = workspace.resolve(manifest.path)
    # With the host's name: a pod that is retried while its lost predecessor still writes has a folder of its own.
    partial = target.with_name(f"{step}.{socket.gethostname()}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for folder, files in _by_folder(manifest, source).items():
        link_files(files, partial / folder)
    linked = replace(manifest, path=target.relative_to(workspace.root).as_posix())
    linked.save(partial / MANIFEST_NAME)
    _copy_times(manifest, source, partial)
    try:
        replace_directory(partial, target)
    except OSError:
        finished = _linked(target, manifest)
        if not finished:
            raise
        logger.warning("%s was linked meanwhile by another process", finished.path)
        shutil.rmtree(partial)
        return finished
    logger.info("%s is linked as %s", manifest.path, linked.path)
    return linked


def _linked(target: Path, manifest: Manifest) -> Manifest | None:
    """Return the manifest in ``target`` if the same files are there already."""
    finished = finished_manifest(target, manifest.inputs)
    return finished if finished and finished.fingerprint == manifest.fingerprint else None


def _by_folder(manifest: Manifest, source: Path) -> dict[PurePosixPath, list[Path]]:
    """Return the step's files by the folder within it that holds them."""
    folders = defaultdict(list)
    for file in manifest.files:
        if not has_size(source / file.name, file.size_bytes):
            raise WorkspaceError(f"{manifest.path}/{file.name} is not what the step left. Run the step again.")
        folders[PurePosixPath(file.name).parent].append(source / file.name)
    return folders


def _copy_times(manifest: Manifest, source: Path, target: Path) -> None:
    """Let the manifest and the folders be as old as the step's own; linked files are."""
    folders = {folder for file in manifest.files for folder in PurePosixPath(file.name).parents}
    for name in (PurePosixPath(MANIFEST_NAME), PurePosixPath(), *folders):
        status = (source / name).stat()
        os.utime(target / name, ns=(status.st_atime_ns, status.st_mtime_ns))
