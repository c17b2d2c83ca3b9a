from pathlib import Path

import pytest

from osft.errors import MissingPathError
from osft.versions.chain_summary import summarize_chain
from osft.versions.folders import PRUNED_NAME
from osft.versions.memory_room import memory_line
from osft.workspace import Workspace
from tests.versions.chains import five_domains, make_lineage, make_score, write_chain, write_memory, write_version


def test_a_chain_is_summed_up_version_by_version(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=3))

    summary = summarize_chain(workspace, "demo")

    assert summary.current == "v0003"
    assert summary.origin == "org/base-model"
    assert [(one.version, one.parent, one.is_current) for one in summary.versions] == [
        ("v0001", None, False),
        ("v0002", "v0001", False),
        ("v0003", "v0002", True),
    ]
    assert summary.versions[0].rows == 301
    assert summary.versions[0].unfreeze_rank_ratio == 0.25
    assert (summary.versions[0].cumulative_forgetting, summary.versions[0].origin_forgetting) == (None, None)
    assert (summary.versions[1].cumulative_forgetting, summary.versions[1].origin_forgetting) == (0.039, 0.024)
    assert summary.matrix.versions[0] == "v0000"
    assert summary.memory is None


def test_the_chain_of_an_earlier_version_ends_with_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=3))

    summary = summarize_chain(workspace, "demo", "v0002")

    assert summary.matrix.versions == ("v0000", "v0001", "v0002")
    assert summary.others == ("v0003",)


def test_what_a_version_was_worth_does_not_change_with_the_versions_after_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    # The second run asks a new task, also of its base: that is the first version.
    second = [make_score("old", 0.9, before=0.9), make_score("asked later", 0.1, before=0.1)]
    write_chain(workspace, [make_lineage(1, [make_score("old", 0.9, before=0.9)]), make_lineage(2, second)])

    summary = summarize_chain(workspace, "demo")

    assert summary.matrix.scores[1] == (0.9, 0.1)
    assert [one.average_accuracy for one in summary.versions] == [0.9, 0.5]


def test_a_version_beside_the_chain_is_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=2))
    write_version(workspace, make_lineage(3, [make_score("country_code", 0.9)], parent="v0001"))

    summary = summarize_chain(workspace, "demo")

    assert [one.version for one in summary.versions] == ["v0001", "v0003"]
    assert summary.others == ("v0002",)


def test_a_version_whose_weights_were_pruned_is_told(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=2))
    (tmp_path / "models" / "demo" / "v0001" / PRUNED_NAME).write_text("{}")

    summary = summarize_chain(workspace, "demo")

    assert [one.has_weights for one in summary.versions] == [False, True]


def test_the_memory_of_the_last_version_says_where_there_is_least_room(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=1))
    # At a ratio of 0.25 six of eight directions can be protected.
    write_memory(workspace, "v0001", {("layers.0.roomy",): (2,), ("layers.0.tight",): (5,)})

    memory = summarize_chain(workspace, "demo").memory

    assert memory is not None
    assert [one.targets[0] for one in memory.inputs] == ["layers.0.tight", "layers.0.roomy"]
    assert memory.inputs[0].used_share == pytest.approx(5 / 6)
    assert memory.more_tasks == pytest.approx(1 / 5)


def test_a_memory_that_fits_nowhere_any_more_has_no_end_that_is_out_of_sight(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=2))
    # Seven of six directions, and the second task needed no more.
    write_memory(workspace, "v0002", {("layers.0.full",): (7, 7), ("layers.0.roomy",): (2, 2)})

    memory = summarize_chain(workspace, "demo").memory

    assert memory is not None
    assert memory_line(memory).endswith("116.7% of its room used; too little room for the tasks so far")


def test_an_unknown_model_is_answered_with_near_names(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=1))

    with pytest.raises(MissingPathError, match="Did you mean demo?"):
        summarize_chain(workspace, "dem")


def test_an_unknown_version_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_chain(workspace, five_domains(versions=2))

    with pytest.raises(MissingPathError, match="no version 'v0007'.*v0002"):
        summarize_chain(workspace, "demo", "v0007")
