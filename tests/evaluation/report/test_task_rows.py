from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.task_rows import flip_totals, table_groups

MakeReport = Callable[..., ForgettingReport]
MakeTask = Callable[..., TaskComparison]


def test_tasks_stand_worst_first_and_those_without_an_interval_last(
    make_report: MakeReport, make_task: MakeTask
) -> None:
    single = make_task(task="single", delta=-1.0, ci_low=None, ci_high=None, p_adjusted=None, n=1)
    changes = {"better": 0.1, "worst": -0.3, "worse": -0.1}
    tasks = [make_task(task=name, delta=change) for name, change in changes.items()]

    (group,) = table_groups(make_report(tasks=(single, *tasks)))

    assert [row["task"] for row in group["rows"]] == ["worst", "worse", "better", "single"]
    assert [row["missing"] for row in group["rows"]] == [None, None, None, "one document: no interval"]


def test_only_a_change_told_apart_from_chance_is_coloured(make_report: MakeReport, make_task: MakeTask) -> None:
    tasks = (
        make_task(task="chance", delta=-0.2, ci_low=-0.3, ci_high=-0.1, p_adjusted=0.3),
        make_task(task="real", delta=-0.1, ci_low=-0.2, ci_high=-0.05, p_adjusted=0.01),
        make_task(task="grown", delta=0.1, ci_low=0.05, ci_high=0.2, p_adjusted=0.049),
    )

    (group,) = table_groups(make_report(tasks=tasks))

    assert [(row["tone"], row["chance"]) for row in group["rows"]] == [
        ("even", None),
        ("loss", "p = 0.010"),
        ("gain", "p = 0.049"),
    ]


def test_one_document_that_lost_all_does_not_flatten_the_other_bars(
    make_report: MakeReport, make_task: MakeTask
) -> None:
    single = make_task(task="single", delta=-1.0, ci_low=None, ci_high=None, p_adjusted=None, n=1)

    (group,) = table_groups(make_report(tasks=(make_task(), single)))

    other, lone = (row["bar"] for row in group["rows"])
    assert other["range"]["width"] > 50
    assert lone == {"dot": 4.0, "range": None, "beyond": "left"}


@given(changes=st.lists(st.floats(-1, 1), min_size=1, max_size=20), width=st.floats(0, 0.5))
def test_every_bar_stays_within_its_column(
    make_report: MakeReport, make_task: MakeTask, changes: list[float], width: float
) -> None:
    tasks = tuple(make_task(delta=change, ci_low=change - width, ci_high=change + width) for change in changes)

    (group,) = table_groups(make_report(tasks=tasks))

    bars = [row["bar"] for row in group["rows"]]
    for bar in bars:
        # Rounding to hundredths of a percent, twice.
        assert 4 <= bar["range"]["left"] <= bar["dot"] + 0.02
        assert bar["dot"] - 0.02 <= bar["range"]["left"] + bar["range"]["width"] <= 96.02
    assert all(left["dot"] <= right["dot"] for left, right in pairwise(bars))


def test_a_change_of_a_perplexity_is_drawn_relative_to_it(make_report: MakeReport, make_task: MakeTask) -> None:
    perplexity = make_task(
        task="b", base=200.0, tuned=220.0, delta=-20.0, ci_low=-30.0, ci_high=-10.0, higher_is_better=False
    )
    accuracy = make_task(task="a", delta=-0.1, ci_low=-0.15, ci_high=-0.05)

    (group,) = table_groups(make_report(tasks=(accuracy, perplexity)))

    assert group["rows"][0]["bar"] == group["rows"][1]["bar"]


def test_a_change_from_zero_is_drawn_as_all_of_it(make_report: MakeReport, make_task: MakeTask) -> None:
    task = make_task(base=0.0, tuned=40.0, delta=40.0, ci_low=30.0, ci_high=50.0)

    (group,) = table_groups(make_report(tasks=(task,)))

    assert group["axis"][1] == "+100.0"


def test_a_broken_perplexity_does_not_hide_the_other_changes(make_report: MakeReport, make_task: MakeTask) -> None:
    broken = make_task(
        task="broken", base=12.3, tuned=3.4e15, delta=-3.4e15, ci_low=-5e15, ci_high=-2e15, higher_is_better=False
    )
    small = make_task(task="small", delta=-0.08, ci_low=-0.1, ci_high=-0.06)

    (group,) = table_groups(make_report(tasks=(small, broken)))

    assert group["axis"] == ("\N{MINUS SIGN}100.0", "+100.0")
    assert group["rows"][0]["bar"] == {"dot": 4.0, "range": {"left": 4.0, "width": 0.0}, "beyond": "left"}
    assert group["rows"][1]["bar"]["dot"] == pytest.approx(46.3, abs=0.05)


def test_flips_are_summed_over_tasks_that_are_right_or_wrong(make_report: MakeReport, make_task: MakeTask) -> None:
    assert flip_totals(make_report()) == {"lost": 3, "gained": 100}
    assert flip_totals(make_report(tasks=(make_task(lost=None, gained=None),))) is None
