"""The story of a version: what it was trained from, on what, how, and what it scored.

Each version's folder holds its own as ``lineage.json``. A version names its parent, so a chain is read link by link
from the newest to the origin; a rollback changes which version is current and no lineage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from osft.errors import MissingPathError, WorkspaceError
from osft.lookup import describe_near
from osft.versions.folders import ORIGIN_FOLDER, published_versions, version_number, versions_folder
from osft.versions.journal import Journal
from osft.workspace import Workspace, read_json, write_json

LINEAGE_NAME = "lineage.json"
LINEAGE_SCHEMA = "osft.lineage/v2"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """What a version scored on one task, beside what it was trained from."""

    task: str
    """The held-out rows of the version's own run appear under their permanent name, :attr:`Lineage.learned_task`."""

    kind: Literal["retention", "target"]
    metric: str
    higher_is_better: bool
    before: float | None
    """Score of the model that the version was trained from; None for the origin."""

    after: float
    documents: int
    questions: str
    """Hash of what was asked: two scores of a task compare where it is the same (:mod:`osft.versions.questions`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where a version comes from and what it is worth: the content of ``lineage.json``."""

    model_name: str
    version: str
    parent: str | None
    """Version whose weights it was trained from; None: the origin itself."""

    replaced: str | None
    """Version that was current before it was promoted."""

    origin: str
    """The model at the beginning of the chain, as it was given."""

    origin_fingerprint: str | None
    """Hash of the origin's files; None where it is not known."""

    run_id: str
    promoted_at: str
    """ISO 8601, UTC."""

    data: Mapping[str, Any]
    """Source, revision, sha256 and rows of the data, and what became of the rows."""

    parameters: Mapping[str, Mapping[str, Any]]
    """Inputs of each step, by the step's folder; seeds among them."""

    file_hashes: Mapping[str, Mapping[str, str]]
    """sha256 of every file that a step left, by the step's folder and the file's name."""

    software: Mapping[str, str]
    """Versions of the packages that made it."""

    learned_task: str | None
    """Name under which later runs are asked the rows that its run held out; None if it held out none."""

    scores: tuple[TaskScore, ...]

    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """All of ``forgetting.json``."""

    schema: str = LINEAGE_SCHEMA

    def save(self, folder: Path) -> None:
        """Write ``lineage.json`` into ``folder``, atomically."""
        write_json(folder / LINEAGE_NAME, self)

    @classmethod
    def load(cls, folder: Path) -> "Lineage":
        """Read the lineage of the version in ``folder``.

        Raises:
            WorkspaceError: if there is none of this schema.
        """
        path = folder / LINEAGE_NAME
        try:
            fields = read_json(path)
            schema = fields["schema"]
            if schema == LINEAGE_SCHEMA:
                scores = tuple(TaskScore(**score) for score in fields.pop("scores"))
                return cls(scores=scores, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkspaceError(
                f"{path}: no {LINEAGE_SCHEMA} lineage ({error}). Promote the version again."
            ) from error
        raise WorkspaceError(
            f"{path}: the lineage has schema '{schema}', not {LINEAGE_SCHEMA}. Promote under a new name with this osft."
        )


def read_lineage(workspace: Workspace, model_name: str, version: str) -> Lineage:
    """Return the lineage of one version.

    Raises:
        MissingPathError: if there is no such version.
        WorkspaceError: if its lineage cannot be read.
    """
    folder = versions_folder(workspace, model_name)
    if version not in (published := published_versions(folder)):
        near = describe_near(version, published)
        raise MissingPathError(f"model '{model_name}' has no version '{version}' in {workspace.root}. {near}")
    return Lineage.load(folder / version)


def chain_of(workspace: Workspace, model_name: str, version: str | None = None) -> list[Lineage]:
    """Return the lineages from the origin to a version, oldest first.

    The first is that of the origin (``v0000``), which the chain's first version keeps, where it is known.

    Args:
        workspace: where the models are.
        model_name: folder name below ``models``.
        version: the last link; None takes the current version.

    Raises:
        MissingPathError: if there is no such version, or none at all.
        WorkspaceError: if a lineage cannot be read or names a parent that is no older version.
    """
    last = version or Journal(workspace, model_name).current()
    if last is None:
        raise MissingPathError(f"model '{model_name}' has no promoted version in {workspace.root}. Run the pipeline.")
    chain = [read_lineage(workspace, model_name, last)]
    while (parent := chain[-1].parent) is not None:
        if version_number(parent) >= version_number(chain[-1].version):
            raise WorkspaceError(
                f"models/{model_name}/{chain[-1].version}/{LINEAGE_NAME} names {parent} as its parent, which is not "
                "older. Restore the file."
            )
        chain.append(read_lineage(workspace, model_name, parent))
    origin = versions_folder(workspace, model_name) / chain[-1].version / ORIGIN_FOLDER
    if (origin / LINEAGE_NAME).is_file():
        chain.append(Lineage.load(origin))
    return chain[::-1]
