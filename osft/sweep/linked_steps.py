"""A finished step of one run as a step of another, without its bytes twice.

A sweep's ratios are trained on the same rows, and the chosen one is the sweep's own result. Each of these runs is
whole for whoever reads it: the files of a shared step have a second name there (hard links; finished files are never
written to). Only the manifest is another one, for it names its own folder. Whichever run is removed, the others keep
their files.
"""

import logging
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

    The folder appears whole, and replaces what another step has left there. What is there already is left.

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
    finished = finished_manifest(target, manifest.inputs)
    if finished and finished.fingerprint == manifest.fingerprint:
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
    replace_directory(partial, target)
    logger.info("%s is linked as %s", manifest.path, linked.path)
    return linked


def _by_folder(manifest: Manifest, source: Path) -> dict[PurePosixPath, list[Path]]:
    """Return the step's files by the folder within it that holds them."""
    folders = defaultdict(list)
    for file in manifest.files:
        if not has_size(source / file.name, file.size_bytes):
            raise WorkspaceError(f"{manifest.path}/{file.name} is not what the step left. Run the step again.")
        folders[PurePosixPath(file.name).parent].append(source / file.name)
    return folders
