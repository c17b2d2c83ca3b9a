"""Which rows are new to a run, told from what it starts from.

The rows that the runs of all ancestors took, trained or held out, are not taken again: the model has learnt them, or is
still to be asked them. A run may be forced to take the learnt ones once more, never those that are still to be asked.
What an ancestor's run dropped as too long is new to a run with more room only: any other would drop it once more, and
where nothing else is new, fail. A run that was not promoted has no descendants, so its rows stay new.
"""

from osft.data.files import ROWS_NAME
from osft.data.increments.increment import Increment
from osft.data.increments.times import parse_time
from osft.versions.base_model import BaseModel
from osft.versions.lineage import read_lineage
from osft.workspace import Manifest, Workspace


def new_rows(
    workspace: Workspace,
    base: BaseModel,
    rows: Manifest,
    *,
    since: str,
    time_column: str,
    max_seq_len: int,
    force: bool,
) -> Increment:
    """Return what a run takes of its downloaded rows.

    Args:
        workspace: where the versions are.
        base: what the run starts from.
        rows: manifest of the downloaded rows.
        since: ``data_since`` of the pipeline; empty takes rows of any time.
        time_column: ``data_time_column``.
        max_seq_len: longest row of this run in tokens.
        force: rows that earlier runs were trained on are taken all the same.

    Raises:
        ConfigError: if ``since`` is no time.
        MissingPathError: if the hashes of an ancestor's rows, or its lineage, are gone.
    """
    return Increment(
        since=parse_time(since, name="data_since") if since else None,
        time_column=time_column,
        seen_rows=tuple(workspace.resolve(file) for file in base.seen_rows),
        held_out_rows=tuple(workspace.resolve(file) for file in base.held_out_rows),
        too_long_rows=tuple(
            workspace.resolve(file) for file, limit in base.too_long_rows.items() if max_seq_len <= limit
        ),
        force=force,
        unchanged_since=base.parent if _parent_had(workspace, base, rows) else None,
    )


def _parent_had(workspace: Workspace, base: BaseModel, rows: Manifest) -> bool:
    """Return whether the run of the version that ``base`` is had the same rows, byte for byte."""
    if base.parent is None:
        return False
    parent = read_lineage(workspace, base.model_name, base.parent)
    hashes = {file.name: file.sha256 for file in rows.files}
    return parent.file_hashes.get("raw", {}).get(ROWS_NAME) == hashes[ROWS_NAME]
