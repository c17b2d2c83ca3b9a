from pathlib import Path

import pytest
from rich.console import Console

from osft.evaluation.report.points import MINUS
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask
from osft.versions.chain_summary import ChainSummary, summarize_chain
from osft.versions.lineage_table import render_lineage
from osft.versions.matrix_table import figure_lines, render_matrix
from osft.versions.score_text import COLD, WARM
from osft.workspace import Workspace
from tests.versions.chains import five_domains, make_lineage, make_score, write_chain


def drawn(summary: ChainSummary, *, width: int, colors: bool = False) -> list[str]:
    console = Console(width=width, force_terminal=colors, color_system="truecolor" if colors else None)
    with console.capture() as capture:
        console.print(render_lineage(summary, width))
    return capture.get().replace(MINUS, "-").splitlines()


def drawn_lines(summary: ChainSummary, *, width: int = 100) -> list[str]:
    return [" ".join(line.split()) for line in drawn(summary, width=width)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_the_table_shows_versions_matrix_and_figures(workspace: Workspace) -> None:
    write_chain(workspace, five_domains(versions=3))

    lines = drawn_lines(summarize_chain(workspace, "demo"))

    assert "demo, from org/base-model" in lines
    assert "v0001 origin s3://bucket/domains/1.jsonl 301 0.25 1.2 (≤ 3.1) +99.0" in lines
    assert "v0003 v0002 s3://bucket/domains/3.jsonl 303 0.25 1.2 (≤ 3.1) +99.0" in lines
    assert "2026-03-04 6f1c2b0e-0000-4000-8000-000000000003 3.9 vs best" in lines
    assert "current 2.4 vs origin" in lines
    assert "task v0000 v0001 v0002 v0003 forgetting" in lines
    assert "holdout_v0001 0.0% ■100.0% 93.0% 90.0% 10.0" in lines
    assert "holdout_v0003 — — 0.0% ■100.0% —" in lines
    assert "average accuracy of v0003: 94.6% over 5 tasks" in lines
    assert "backward transfer: -6.0 points" in lines
    assert "forgetting: 6.0 points, the mean of the tasks" in lines


@pytest.mark.parametrize("width", [80, 100])
def test_a_long_chain_keeps_to_the_width_and_says_what_it_left_out(workspace: Workspace, width: int) -> None:
    write_chain(workspace, five_domains(versions=10))

    lines = drawn(summarize_chain(workspace, "demo"), width=width)

    assert max(map(len, lines)) <= width
    assert any("older versions left out" in line for line in lines)
    assert any("v0010" in line and "forgetting" in line for line in lines)


def test_a_matrix_is_drawn_without_a_chain() -> None:
    matrix = AccuracyMatrix(
        versions=("base", "after task 1"), tasks=(MatrixTask(name="facts", metric="acc"),), scores=((1.0,), (0.5,))
    )
    console = Console(width=80)

    with console.capture() as capture:
        console.print(render_matrix(matrix, 80), *figure_lines(matrix), sep="\n")

    assert "facts 100.0% 50.0% 50.0" in [" ".join(line.split()) for line in capture.get().splitlines()]


def test_cells_are_coloured_by_how_good_they_are(workspace: Workspace) -> None:
    write_chain(workspace, five_domains(versions=1))

    lines = drawn(summarize_chain(workspace, "demo"), width=100, colors=True)

    cells = next(line for line in lines if "holdout_v0001" in line)
    for color in (COLD, WARM):
        assert f"48;2;{';'.join(map(str, color))}" in cells


def test_brackets_in_names_are_shown_as_they_are(workspace: Workspace) -> None:
    write_chain(workspace, [make_lineage(1, [make_score("[red]capitals[eu]", 0.5)])])

    lines = drawn_lines(summarize_chain(workspace, "demo"))

    assert any(line.startswith("[red]capitals[eu] 50.0%") for line in lines)


def test_what_the_last_version_was_not_asked_is_named(workspace: Workspace) -> None:
    write_chain(workspace, [make_lineage(1, [make_score("old", 0.5)]), make_lineage(2, [make_score("new", 0.5)])])

    lines = drawn_lines(summarize_chain(workspace, "demo"))

    assert "not asked of v0002, and in none of these figures: old" in lines


def test_a_task_whose_questions_changed_is_told_apart_and_named(workspace: Workspace) -> None:
    chain = [make_lineage(number, [make_score("exam", 0.5, questions=f"q{number}")]) for number in (1, 2)]
    write_chain(workspace, chain)

    lines = drawn_lines(summarize_chain(workspace, "demo"))

    assert "exam (until v0001) 50.0% — —" in lines
    assert "exam — 50.0% —" in lines
    assert "other questions since then, and in none of these figures: exam (until v0001)" in lines
