"""What ``osft lineage`` shows of a model: each version of the chain, the matrix of their scores, and what follows.

The terminal's table, the page and the JSON are all drawn from one :class:`ChainSummary`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixFigures, matrix_of
from osft.versions.folders import check_model, has_weights, published_versions, versions_folder
from osft.versions.journal import Journal
from osft.versions.lineage import Lineage, chain_of
from osft.versions.memory_room import MemoryRoom, read_memory_room
from osft.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionSummary:
    """One version, as a line of the table."""

    version: str
    parent: str | None
    """None: the origin."""

    promoted_at: str
    run_id: str
    data_uri: str | None
    rows: int | None
    """Rows that were trained on; of an older run, rows of the source."""

    unfreeze_rank_ratio: float | None
    forgetting: float | None
    forgetting_upper: float | None
    """Against its parent, with its 95% bound, as the run's evaluation judged it."""

    cumulative_forgetting: float | None
    origin_forgetting: float | None
    """Against each task's best earlier version and against the origin, as the same evaluation found; None where its
    parent is the origin."""

    target_gain: float | None
    average_accuracy: float | None
    backward_transfer: float | None
    """Of the matrix that ended with this version."""

    is_current: bool
    has_weights: bool
    """False once they were pruned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainSummary:
    """A model's chain of versions."""

    model_name: str
    current: str | None
    origin: str
    """The model that the chain began with, as it was given."""

    versions: tuple[VersionSummary, ...]
    """Oldest first, without the origin."""

    others: tuple[str, ...]
    """Versions that the chain does not descend from, for example after a rollback."""

    matrix: AccuracyMatrix
    figures: MatrixFigures

    memory: MemoryRoom | None
    """Of the last version; None if it carries none."""


def summarize_chain(workspace: Workspace, model_name: str, version: str | None = None) -> ChainSummary:
    """Return what is known of the chain that ends with ``version``.

    Args:
        workspace: where the models are.
        model_name: folder name below ``models``.
        version: the last version of the chain; None takes the current one.

    Raises:
        MissingPathError: if there is no such model or version, or nothing is promoted yet.
        WorkspaceError: if a lineage cannot be read.
    """
    check_model(workspace, model_name)
    folder = versions_folder(workspace, model_name)
    chain = chain_of(workspace, model_name, version)
    current = Journal(workspace, model_name).current()
    matrix = matrix_of(chain)
    versions = tuple(
        _summarize(chain[: place + 1], folder, current)
        for place, lineage in enumerate(chain)
        if lineage.version != ORIGIN_VERSION
    )
    return ChainSummary(
        model_name=model_name,
        current=current,
        origin=chain[-1].origin,
        versions=versions,
        others=tuple(name for name in published_versions(folder) if name not in {one.version for one in chain}),
        matrix=matrix,
        figures=matrix.figures(),
        memory=read_memory_room(folder / versions[-1].version, versions[-1].unfreeze_rank_ratio) if versions else None,
    )


def _summarize(chain: Sequence[Lineage], folder: Path, current: str | None) -> VersionSummary:
    """Return the last version of a chain, whose matrix is made of nothing that came later."""
    lineage, figures = chain[-1], matrix_of(chain).figures()
    judged = lineage.evaluation
    return VersionSummary(
        version=lineage.version,
        parent=lineage.parent,
        promoted_at=lineage.promoted_at,
        run_id=lineage.run_id,
        data_uri=lineage.data.get("uri"),
        rows=lineage.data.get("rows_train", lineage.data.get("rows")),
        unfreeze_rank_ratio=lineage.parameters.get("training", {}).get("unfreeze_rank_ratio"),
        forgetting=judged.get("forgetting"),
        forgetting_upper=judged.get("forgetting_upper"),
        cumulative_forgetting=judged.get("cumulative_forgetting"),
        origin_forgetting=judged.get("origin_forgetting"),
        target_gain=judged.get("target_gain"),
        average_accuracy=figures.average_accuracy,
        backward_transfer=figures.backward_transfer,
        is_current=lineage.version == current,
        has_weights=has_weights(folder / lineage.version),
    )
