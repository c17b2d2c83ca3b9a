"""What a run starts from, resolved once and pinned for all of its steps.

``promoted://<model_name>`` is the current version of that name, or the origin while none is promoted. The first step
of a run looks it up and writes it down; every later step, and a retried one, goes by what is written, whatever is
promoted or rolled back meanwhile. The promotion at the end checks that what was current then still is. What is written
also keeps a pruning from taking the weights away.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from osft.data.files import HELD_OUT_ROWS_NAME, SEEN_ROWS_NAME, TOO_LONG_ROWS_NAME
from osft.errors import ConfigError, WorkspaceError
from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.lookup import describe_near
from osft.versions.folders import (
    MEASUREMENTS_FOLDER,
    MEMORY_FOLDER,
    ORIGIN_FOLDER,
    claim_weights,
    has_weights,
    published_versions,
    pvc_reference,
    relative_path,
    versions_folder,
)
from osft.versions.journal import Journal, promoted_models
from osft.versions.lineage import chain_of
from osft.versions.retention_tasks import earlier_holdouts
from osft.workspace import Manifest, Workspace, read_json, safe_name, write_json

logger = logging.getLogger(__name__)

PROMOTED_SCHEME = "promoted://"
BASE_STEP = "base"
BASE_NAME = "base.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """What a run starts from: the content of ``runs/<run_id>/base/base.json``."""

    reference: str
    """``model_base`` as it was given."""

    model: str
    """A Hugging Face id, a path or ``pvc://``: what every step of the run loads."""

    model_name: str
    """Name under which the run's model is promoted if it passes."""

    parent: str | None
    """Version of :attr:`model_name` that :attr:`model` is; None: it is none of them."""

    current: str | None
    """Version of :attr:`model_name` that was current when the run began; the promotion expects that it still is."""

    origin: str
    """The model at the beginning of the chain, as it was given."""

    memory: str | None
    """Folder of the subspace memory that comes with :attr:`model`, relative to the workspace; None: there is none."""

    earlier_holdouts: Mapping[str, str]
    """Held-out rows of every ancestor, oldest first: name of the task, and its folder relative to the workspace."""

    seen_rows: tuple[str, ...]
    """Files with the hashes of the rows that every ancestor's run has seen, relative to the workspace."""

    held_out_rows: tuple[str, ...]
    """Files with the hashes of those of them that it held out; no descendant is ever trained on them."""

    too_long_rows: Mapping[str, int]
    """Files with the hashes of the rows that it dropped, and the tokens that were its limit."""

    ancestor_measurements: Mapping[str, str]
    """What every ancestor scored, document by document, oldest first, the origin (``v0000``) included where it is
    known: version, and its folder of measurements relative to the workspace."""

    def save(self, folder: Path) -> None:
        """Write ``base.json`` into ``folder``, atomically."""
        write_json(folder / BASE_NAME, self)

    @classmethod
    def load(cls, path: Path) -> "BaseModel":
        """Read it back from ``base.json`` or the folder that holds it.

        Raises:
            WorkspaceError: if there is none.
        """
        file = path / BASE_NAME if path.is_dir() else path
        try:
            fields = read_json(file)
            seen_rows, held_out_rows = tuple(fields.pop("seen_rows")), tuple(fields.pop("held_out_rows"))
            return cls(seen_rows=seen_rows, held_out_rows=held_out_rows, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkspaceError(f"{file}: no base of a run ({error}). Start the run anew.") from error


def resolve_base(
    workspace: Workspace, *, run_id: str, model_base: str, model_origin: str, promote_model_name: str
) -> Manifest:
    """Write down what a run starts from, in ``runs/<run_id>/base``; a retried run keeps what it began with.

    Args:
        workspace: where the models are.
        run_id: id of the run.
        model_base: a Hugging Face id, a path, ``pvc://`` or ``promoted://<model_name>``.
        model_origin: what ``promoted://`` stands for while nothing is promoted; may be empty otherwise.
        promote_model_name: name under which the run's model will be promoted.

    Raises:
        ConfigError: if there is nothing to start from.
        WorkspaceError: if a name cannot be a folder, or the version has no weights any more.
    """
    inputs = {"model_base": model_base, "model_origin": model_origin, "promote_model_name": promote_model_name}
    manifest = workspace.complete(
        run_id,
        BASE_STEP,
        inputs=inputs,
        work=lambda folder: _resolve(workspace, model_base, model_origin, promote_model_name).save(folder),
    )
    pinned = BaseModel.load(workspace.resolve(manifest.path)).model
    version = _version_behind(workspace, pinned)
    if version and not claim_weights(version):
        raise WorkspaceError(f"'{pinned}': its weights were pruned after this run had begun. Start a new run.")
    return manifest


def _resolve(workspace: Workspace, reference: str, origin: str, model_name: str) -> BaseModel:
    current = Journal(workspace, model_name).current()
    given = _given_model(workspace, reference, origin, model_name)
    version = _version_behind(workspace, given)
    if version and not has_weights(version):
        raise WorkspaceError(f"'{given}': the weights of {version} are pruned. Give a version that has them.")
    if version is None:
        base = _from_outside(reference, given, model_name, current)
    elif version.parent.name == model_name:
        base = _from_version(workspace, reference, version, current)
    else:
        # A chain of its own begins; what the other chain was asked, it is not.
        outside = pvc_reference(workspace, version)
        base = _from_outside(reference, outside, model_name, current, memory=_memory(workspace, version))
    logger.info("'%s': the run begins from %s", model_name, base.model)
    if current and base.parent != current:
        logger.warning(
            "'%s': the run starts from %s and not from the current version %s. If it passes, its model replaces %s, "
            "and later runs do not have what %s learnt. To go on from it, set model_base to %s%s.",
            *(model_name, base.model, current, current, current, PROMOTED_SCHEME, model_name),
        )
    return base


def _given_model(workspace: Workspace, reference: str, origin: str, model_name: str) -> str:
    """Return ``model_base``, or ``model_origin`` where nothing is promoted that ``model_base`` could stand for.

    Raises:
        ConfigError: if there is nothing to start from.
    """
    if not reference:
        raise ConfigError("model_base is empty. Give a Hugging Face id, a path, pvc:// or promoted://<model_name>.")
    name = reference.removeprefix(PROMOTED_SCHEME)
    if name == reference or Journal(workspace, name).current():
        return reference
    if name != model_name:
        # Its origin would be taken again in every run, because this run's model is promoted under another name.
        raise ConfigError(
            f"model_base is '{reference}', of which nothing is promoted, and promote_model_name is '{model_name}'. "
            f"{describe_near(name, {*promoted_models(workspace), model_name})}"
        )
    if not origin or origin.startswith(PROMOTED_SCHEME):
        raise ConfigError(
            f"model_base is '{reference}', of which nothing is promoted yet, and model_origin is '{origin}'. "
            "Give the model to begin from as model_origin: a Hugging Face id, a path or pvc://."
        )
    logger.info("nothing is promoted as %s yet: the run begins from its origin", reference)
    return origin


def _version_behind(workspace: Workspace, reference: str) -> Path | None:
    """Return the folder of the promoted version that a reference stands for; None if it stands for none."""
    if reference.startswith(PROMOTED_SCHEME):
        name = safe_name(reference.removeprefix(PROMOTED_SCHEME), what="model name")
        current = Journal(workspace, name).current()
        return versions_folder(workspace, name) / current if current else None
    path = Path(workspace.locate(reference)).resolve()
    is_version = path.parent.parent == workspace.models.resolve() and path.name in published_versions(path.parent)
    return versions_folder(workspace, path.parent.name) / path.name if is_version else None


def _from_outside(
    reference: str, model: str, model_name: str, current: str | None, *, memory: str | None = None
) -> BaseModel:
    """Return a base at which a chain begins."""
    return BaseModel(
        reference=reference,
        model=model,
        model_name=model_name,
        parent=None,
        current=current,
        origin=model,
        memory=memory,
        earlier_holdouts={},
        seen_rows=(),
        held_out_rows=(),
        too_long_rows={},
        ancestor_measurements={},
    )


def _from_version(workspace: Workspace, reference: str, version: Path, current: str | None) -> BaseModel:
    """Return a base that is a link of the chain."""
    chain = chain_of(workspace, version.parent.name, version.name)
    promoted = [lineage for lineage in chain if lineage.version != ORIGIN_VERSION]
    versions = [version.parent / lineage.version for lineage in promoted]
    limits = [int(lineage.parameters["processed"]["max_seq_len"]) for lineage in promoted]
    measured = {ORIGIN_VERSION: versions[0] / ORIGIN_FOLDER, **{folder.name: folder for folder in versions}}
    return BaseModel(
        reference=reference,
        model=pvc_reference(workspace, version),
        model_name=version.parent.name,
        parent=version.name,
        current=current,
        origin=chain[-1].origin,
        memory=_memory(workspace, version),
        earlier_holdouts=earlier_holdouts(workspace, chain),
        seen_rows=_hashes(workspace, versions, SEEN_ROWS_NAME),
        held_out_rows=_hashes(workspace, versions, HELD_OUT_ROWS_NAME),
        too_long_rows=dict(zip(_hashes(workspace, versions, TOO_LONG_ROWS_NAME), limits, strict=True)),
        ancestor_measurements={
            name: relative_path(workspace, folder / MEASUREMENTS_FOLDER)
            for name, folder in measured.items()
            if (folder / MEASUREMENTS_FOLDER).is_dir()
        },
    )


def _hashes(workspace: Workspace, versions: Sequence[Path], name: str) -> tuple[str, ...]:
    """Return a file of row hashes of every version.

    Also one that is lost, which is an error where it is read: its rows would be trained on again.
    """
    return tuple(relative_path(workspace, version / name) for version in versions)


def _memory(workspace: Workspace, version: Path) -> str | None:
    folder = version / MEMORY_FOLDER
    return relative_path(workspace, folder) if folder.is_dir() else None
