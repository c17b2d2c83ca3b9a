from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.probe import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.points import MINUS
from osft.evaluation.report.terminal import render_table

MakeReport = Callable[..., ForgettingReport]
MakeProbe = Callable[..., ProbeComparison]


def drawn(report: ForgettingReport, *, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render_table(report))
    return capture.get().splitlines()


def drawn_lines(report: ForgettingReport, *, width: int = 100) -> list[str]:
    return [" ".join(line.replace(MINUS, "-").split()) for line in drawn(report, width=width)]


def test_table_shows_tasks_gain_forgetting_and_verdict(make_report: MakeReport) -> None:
    lines = drawn_lines(make_report())

    assert "capitals[eu] 100.0% 97.0% -3.0 -7.2 to +1.3 100" in lines
    assert "prose 12 12 +0 — 5" in lines
    assert "new-task gain +100.0" in lines
    assert "forgetting 1.5" in lines
    assert "at most (95% confidence) 3.2" in lines
    assert "chance in prose left out" in lines
    assert "passed" in lines


def test_table_marks_what_is_told_apart_from_chance(
    make_report: MakeReport, make_task: Callable[..., TaskComparison]
) -> None:
    marked = drawn_lines(make_report())
    unmarked = drawn_lines(make_report(tasks=(make_task(),)))

    assert "elements 0.0% 100.0% *+100.0 +95.0 to +100.0 100" in marked
    assert any(line.startswith("* told apart from chance") for line in marked)
    assert not any("*" in line for line in unmarked)


def test_table_says_when_the_gain_was_not_measured(make_report: MakeReport) -> None:
    lines = drawn_lines(make_report(target_gain=None, passed=False))

    assert "new-task gain not measured" in lines
    assert "not passed" in lines


@pytest.mark.parametrize("gain", [None, 1.0])
def test_every_line_is_whole_in_80_columns(
    make_report: MakeReport, make_task: Callable[..., TaskComparison], gain: float | None
) -> None:
    wide = make_task(task="mmlu", delta=-0.5, ci_low=-0.5555, ci_high=-0.1111, n=14_042, p_adjusted=0.001)

    report = make_report(tasks=(*make_report().tasks, wide), target_gain=gain)

    assert drawn_lines(report, width=80) == drawn_lines(report)
    assert max(map(len, drawn(report, width=80))) <= 80


def test_table_without_a_bound_says_so(make_report: MakeReport, make_task: Callable[..., TaskComparison]) -> None:
    lines = drawn_lines(make_report(tasks=(make_task(loss_upper=None),), unbounded_tasks=("[bleu]",)), width=200)

    assert any(line.endswith("how much more is not known: no interval for [bleu]") for line in lines)
    assert not any("confidence" in line for line in lines)


def test_table_of_a_broken_model_is_whole_in_80_columns(
    make_report: MakeReport, make_task: Callable[..., TaskComparison]
) -> None:
    task = make_task(
        base=12.3, tuned=3.4e15, delta=-3.4e15, ci_low=-5.55e15, ci_high=-2.22e15, p_adjusted=0.001, n=14_042
    )
    report = make_report(
        tasks=(task,), forgetting=1.4e14, forgetting_upper=2.8e14, target_gain=-1e14, unbounded_tasks=()
    )

    lines = drawn_lines(report, width=80)

    assert "capitals[eu] 12.3 3.4e+15 *-3.4e+15 -5.55e+15 to -2.22e+15 14,042" in lines
    assert "new-task gain <-1,000" in lines
    assert "forgetting >1,000" in lines
    assert "no bound (95%" in lines
    assert max(map(len, drawn(report, width=80))) <= 80


def test_table_shows_the_probe_where_there_is_one(make_report: MakeReport, make_probe: MakeProbe) -> None:
    probe = make_probe(base_perplexity=9.5, tuned_perplexity=10.25, kl=0.125)

    lines = drawn_lines(make_report(probe=probe))

    assert "perplexity 9.5 10.25" in lines
    assert "KL, nats a token 0.125" in lines


def test_table_of_a_chain_shows_what_was_better_before(make_report: MakeReport, chain_fields: dict[str, Any]) -> None:
    lines = drawn_lines(make_report(**chain_fields))

    title = lines.index("against the best before")
    assert lines[title + 1] == "capitals[eu] (v0001) 100.0% 90.0% -10.0 -15.0 to -4.0 100"
    # Its best is the base, so the table above has it already.
    assert not any("holdout_v0002" in line for line in lines)
    total = lines.index("cumulative forgetting 5.0")
    assert lines[total + 1 : total + 3] == ["at most (95% confidence) 8.8", "since the origin 8.0"]


def test_table_shows_what_earlier_sets_are_together(make_report: MakeReport, pool_fields: dict[str, Any]) -> None:
    lines = drawn_lines(make_report(**pool_fields))

    assert "holdout_v0001 96.0% 96.0% 0.0 -7.2 to +1.3 50" in lines
    assert "earlier_holdouts_acc (pool) 96.0% 96.0% 0.0 -7.2 to +1.3 100" in lines
    assert any(line.startswith("earlier_holdouts_perplexity (not counted)") for line in lines)


def test_table_of_a_chain_is_whole_in_80_columns(make_report: MakeReport, chain_fields: dict[str, Any]) -> None:
    report = make_report(**chain_fields)

    assert drawn_lines(report, width=80) == drawn_lines(report)
