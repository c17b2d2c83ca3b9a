"""The chain of versions."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from osft.errors import MissingPathError, WorkspaceError
from osft.versions.lineage import Lineage, chain_of, read_lineage
from osft.versions.rollback import rollback
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, promote


def test_a_chain_runs_from_the_origin_to_the_current_version(chained: Workspace) -> None:
    chain = chain_of(chained, MODEL)

    assert [(one.version, one.parent) for one in chain] == [
        ("v0000", None), ("v0001", None), ("v0002", "v0001"), ("v0003", "v0002"),
    ]  # fmt: skip


def test_a_chain_may_end_at_any_version(chained: Workspace) -> None:
    assert [one.version for one in chain_of(chained, MODEL, "v0002")] == ["v0000", "v0001", "v0002"]


def test_after_a_rollback_the_chain_of_the_next_run_goes_by_parents(chained: Workspace) -> None:
    rollback(chained, MODEL, "v0001")

    manifest = promote(chained, "run-d")

    assert manifest.path == "models/ours/v0004"
    assert [one.version for one in chain_of(chained, MODEL)] == ["v0000", "v0001", "v0004"]
    lineage = read_lineage(chained, MODEL, "v0004")
    assert (lineage.parent, lineage.replaced) == ("v0001", "v0001")


def test_a_lineage_is_read_back_as_it_was_written(chained: Workspace, tmp_path: Path) -> None:
    lineage = read_lineage(chained, MODEL, "v0002")

    lineage.save(tmp_path)

    assert Lineage.load(tmp_path) == lineage
    assert orjson.loads((tmp_path / "lineage.json").read_bytes())["schema"] == "osft.lineage/v2"


def test_a_version_that_does_not_exist_is_named_with_those_near_it(chained: Workspace) -> None:
    with pytest.raises(MissingPathError, match=r"model 'ours' has no version 'v0009' in \S+\. Did you mean v000"):
        read_lineage(chained, MODEL, "v0009")


def test_a_model_without_versions_has_no_chain(workspace: Workspace) -> None:
    with pytest.raises(MissingPathError, match="model 'ours' has no promoted version"):
        chain_of(workspace, MODEL)


def test_a_parent_that_is_not_older_is_refused(chained: Workspace) -> None:
    replace(read_lineage(chained, MODEL, "v0002"), parent="v0003").save(chained.models / "ours/v0002")

    with pytest.raises(WorkspaceError, match=r"models/ours/v0002/lineage\.json names v0003 as its parent"):
        chain_of(chained, MODEL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"lineage\.json: no osft\.lineage/v2 lineage"),
        ("{}", r"lineage\.json: no osft\.lineage/v2 lineage"),
        ('{"schema": "osft.lineage/v1"}', r"the lineage has schema 'osft\.lineage/v1', not osft\.lineage/v2"),
    ],
)
def test_a_lineage_of_another_form_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lineage.json").write_text(content)

    with pytest.raises(WorkspaceError, match=message):
        Lineage.load(tmp_path)
