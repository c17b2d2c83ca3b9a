"""Making an earlier version the current one again.

Nothing is deleted and no number is given back: the journal gets an entry, the next run begins from the version that is
current then, and the next version's number is still the highest and one. The version that was left stays where it is,
and a second rollback can go back to it.
"""

import logging

from osft.errors import MissingPathError, WorkspaceError
from osft.lookup import describe_near
from osft.versions.folders import check_model, claim_weights, has_weights, versions_folder
from osft.versions.journal import Entry, Journal
from osft.versions.lineage import read_lineage
from osft.workspace import Workspace

logger = logging.getLogger(__name__)


def rollback(workspace: Workspace, model_name: str, version: str | None = None) -> Entry:
    """Make ``version`` the current one.

    Args:
        workspace: where the models are.
        model_name: folder name below ``models``.
        version: a version that was current before; None takes the parent of the current one.

    Returns:
        The journal's new entry.

    Raises:
        MissingPathError: if there is no model of this name, or the version was never current.
        LostRaceError: if another version became current meanwhile.
        WorkspaceError: if nothing was ever current, there is no parent, the version is current already, or its weights
            are pruned.
    """
    check_model(workspace, model_name)
    journal = Journal(workspace, model_name)
    promoted = {entry.version for entry in journal.entries()}
    current = journal.current()
    if current is None:
        raise WorkspaceError(f"model '{model_name}': no version was ever current. Run the pipeline.")
    target = version or _parent_of(workspace, model_name, current)
    if target not in promoted:
        raise MissingPathError(
            f"model '{model_name}': '{target}' was never the current version. {describe_near(target, promoted)}"
        )
    if target == current:
        raise WorkspaceError(f"model '{model_name}': {target} is the current version already. Name another one.")
    _check_weights(workspace, model_name, target, promoted)
    entry = journal.replace(current, target, reason="rollback", run_id=None)
    if not claim_weights(versions_folder(workspace, model_name) / target):
        # A pruning was faster, by less than it took to write the entry.
        journal.replace(target, current, reason="rollback", run_id=None)
        raise WorkspaceError(
            f"model '{model_name}': {target} was pruned as it became current, so {current} is current again. "
            "Call osft lineage to see which versions have their weights."
        )
    logger.info("models/%s: rolled back from %s to %s", model_name, current, target)
    return entry


def _parent_of(workspace: Workspace, model_name: str, version: str) -> str:
    lineage = read_lineage(workspace, model_name, version)
    if lineage.parent is None:
        raise WorkspaceError(
            f"model '{model_name}': {version} was trained from its origin '{lineage.origin}', so there is no parent to "
            "roll back to. Name a version, or start a run with model_base set to the origin."
        )
    return lineage.parent


def _check_weights(workspace: Workspace, model_name: str, version: str, promoted: set[str]) -> None:
    folder = versions_folder(workspace, model_name)
    if not has_weights(folder / version):
        whole = sorted(name for name in promoted if has_weights(folder / name))
        raise WorkspaceError(
            f"model '{model_name}': the weights of {version} are pruned, so nothing can start from it. "
            f"Those of {', '.join(whole)} are there."
        )
