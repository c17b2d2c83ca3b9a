import re
from pathlib import Path

import pytest

from osft.comparison.compared_run import read_run
from osft.comparison.comparison import compare_runs
from osft.comparison.page import write_comparison_page
from osft.workspace import Workspace
from tests.comparison.runs import TASK, make_report, write_run


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path.resolve() / "workspace")


def page_of(workspace: Workspace, names: tuple[str, ...], target: Path) -> str:
    write_comparison_page(compare_runs([read_run(workspace, name) for name in names]), target)
    return target.read_text(encoding="utf-8")


def test_the_page_has_all_runs_their_losses_and_reasons(workspace: Workspace, tmp_path: Path) -> None:
    write_run(workspace, "first", report=make_report(forgetting=0.01, passed=True))
    write_run(workspace, "second")
    write_run(workspace, "third", last_step="baseline")

    page = page_of(workspace, ("first", "second", "third"), tmp_path / "page.html")

    assert '<td class="best"><bdi>1.0</bdi></td>' in page
    assert 'aria-label="Loss of first, second"' in page
    assert page.count(">not passed</span>") == 1
    assert "osft-training is missing." in page
    assert "<dt>train_num_epochs</dt>" in page


def test_the_page_loads_nothing_and_is_the_same_each_time(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(workspace, name)

    first = page_of(workspace, ("a", "b"), tmp_path / "1.html")
    second = page_of(workspace, ("a", "b"), tmp_path / "2.html")

    assert first == second
    assert "<script" not in first
    assert "default-src 'none'" in first
    # Names of namespaces in the picture are no addresses that are asked.
    assert not re.search(r'(src|href)="?http', re.sub(r'xmlns(:xlink)?="[^"]*"', "", first))


def test_names_cannot_become_elements(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(workspace, name, report=make_report({**TASK, "task": "<b onclick=x>"}))

    page = page_of(workspace, ("a", "b"), tmp_path / "page.html")

    assert "<b onclick" not in page
    assert "&lt;b onclick=x&gt;" in page


def test_from_the_eighth_run_on_lines_are_dashed(workspace: Workspace, tmp_path: Path) -> None:
    names = tuple(f"run-{number}" for number in range(8))
    for name in names:
        write_run(workspace, name)

    page = page_of(workspace, names, tmp_path / "page.html")

    # Above the column and below the picture.
    assert page.count("border-top: 3px solid #0072b2") == 2
    assert page.count("border-top: 3px dashed #0072b2") == 2
    assert page.count("stroke-dasharray: 5.55") == 1


def test_runs_that_never_trained_have_no_picture(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(workspace, name, last_step="valid")

    page = page_of(workspace, ("a", "b"), tmp_path / "page.html")

    assert "<svg" not in page
