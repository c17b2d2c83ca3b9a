from pathlib import Path

import pytest
from rich.console import Console

from osft.comparison.compared_run import read_run
from osft.comparison.comparison import compare_runs
from osft.comparison.table import render_comparison
from osft.evaluation.report.points import MINUS
from osft.workspace import Workspace
from tests.comparison.runs import TASK, make_report, write_run

IDS = tuple(f"6f1c2b0e-0000-4000-8000-00000000000{number}" for number in range(9))


def drawn(workspace: Workspace, names: tuple[str, ...], *, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render_comparison(compare_runs([read_run(workspace, name) for name in names]), width))
    return capture.get().replace(MINUS, "-").splitlines()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path.resolve())


def test_the_table_shows_what_differs_scores_losses_and_reasons(workspace: Workspace) -> None:
    write_run(workspace, "first")
    write_run(workspace, "second", training={"learning_rate": 0.003}, losses=(4.0, 1.0, 0.5))

    lines = [" ".join(line.split()) for line in drawn(workspace, ("first", "second"), width=100)]

    assert "first second" in lines
    assert "train_learning_rate 0.006 0.003" in lines
    assert "retention.country_capital" in lines
    assert ".delta -3.0 (-6.0 to -1.0) -3.0 (-6.0 to -1.0)" in lines
    assert "train_final_loss 1 *0.5" in lines
    assert "train_loss █▅▃ █▃▂" in lines
    assert any(line.startswith("Forgetting is 3.0 points") for line in lines)


def test_three_runs_with_long_ids_fit_eighty_characters(workspace: Workspace) -> None:
    report = make_report({**TASK, "task": "mmlu_high_school_government_and_politics"})
    for name in IDS[:3]:
        write_run(workspace, name, report=report)

    lines = drawn(workspace, IDS[:3], width=80)

    assert max(map(len, lines)) <= 80
    assert sum(line.count("6f1c2b0e") for line in lines) == 6


@pytest.mark.parametrize(("width", "shown"), [(80, 3), (120, 5)])
def test_runs_that_do_not_fit_are_left_to_the_page(workspace: Workspace, width: int, shown: int) -> None:
    for number, name in enumerate(IDS):
        write_run(workspace, name, losses=(4.0, 1.0 + number))

    lines = drawn(workspace, IDS, width=width)

    assert max(map(len, lines)) <= width
    assert f"{len(IDS) - shown} runs left out; the page has all (--html)." in [line.strip() for line in lines]
    # A run's id stands above its column and above its reasons, and no number is broken.
    assert sum(line.count("6f1c2b0e") for line in lines) == 2 * shown
    # The best is one of those that are left out.
    losses = [str(1 + number) for number in range(len(IDS) - shown, len(IDS))]
    assert any(line.split() == ["train_final_loss", *losses] for line in lines)


def test_brackets_in_names_are_shown_as_they_are(workspace: Workspace) -> None:
    report = make_report({**TASK, "task": "[red]capitals[eu]"})
    for name in ("a", "b"):
        write_run(workspace, name, report=report)

    assert any("retention.[red]capitals[eu]" in line for line in drawn(workspace, ("a", "b"), width=100))
