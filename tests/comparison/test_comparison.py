from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.comparison.compared_run import ComparedRun, read_run
from osft.comparison.comparison import Comparison, Line, compare_runs
from osft.evaluation.probe.comparison import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.points import MINUS
from osft.workspace import Workspace
from tests.comparison.runs import HOLDOUT, TASK, make_report, write_run

MakeRun = Callable[..., ComparedRun]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    workspace = Workspace(tmp_path.resolve())

    def make(run_id: str, **fields: object) -> ComparedRun:
        write_run(workspace, run_id, **fields)
        return read_run(workspace, run_id)

    return make


def line(comparison: Comparison, name: str) -> Line:
    return next(line for section in comparison.sections for line in section.lines if line.name == name)


def texts(found: Line) -> list[str]:
    return [cell.text.replace(MINUS, "-") for cell in found.cells]


def best(found: Line) -> list[bool]:
    return [cell.is_best for cell in found.cells]


def test_only_settings_that_differ_are_lines_and_the_others_are_told_apart(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", training={"learning_rate": 0.003})]

    found = compare_runs(runs)

    differing = next(section for section in found.sections if section.title == "settings that differ")
    assert [one.name for one in differing.lines] == ["train_learning_rate"]
    assert texts(differing.lines[0]) == ["0.006", "0.003"]
    assert found.same_settings["train_num_epochs"] == "3"


def test_a_run_that_never_trained_makes_no_setting_differ(make_run: MakeRun) -> None:
    found = compare_runs([make_run("a"), make_run("b", last_step="baseline")])

    assert "settings that differ" not in [section.title for section in found.sections]
    assert texts(line(found, "finished")) == ["yes", "no, osft-training is missing"]
    assert texts(line(found, "forgetting")) == ["3.0", "—"]


def test_the_best_of_each_line_is_marked(make_run: MakeRun) -> None:
    better = make_report(
        {**TASK, "tuned": 1.0, "delta": 0.0}, HOLDOUT, forgetting=0.0, forgetting_upper=0.02, passed=True
    )
    runs = [make_run("a"), make_run("b", report=better), make_run("c", report=better)]

    found = compare_runs(runs)

    assert best(line(found, "passed")) == [False, True, True]
    assert best(line(found, "forgetting")) == [False, True, True]
    assert best(line(found, "retention.country_capital.tuned")) == [False, True, True]
    # What the base scored is nobody's merit, and gains that are the same are not compared.
    assert best(line(found, "retention.country_capital.base")) == [False, False, False]
    assert best(line(found, "target_gain")) == [False, False, False]


def test_changes_have_their_interval(make_run: MakeRun) -> None:
    found = compare_runs([make_run("a"), make_run("b")])

    assert texts(line(found, "retention.country_capital.delta"))[0] == "-3.0 (-6.0 to -1.0)"
    assert texts(line(found, "target.holdout.delta"))[0] == "+100.0"


def test_a_lower_perplexity_is_the_better_one(make_run: MakeRun) -> None:
    prose = {"task": "prose", "kind": "retention", "metric": "perplexity", "higher_is_better": False, "n": 5}
    reports = [make_report({**prose, "base": 10.0, "tuned": tuned, "delta": 10.0 - tuned}) for tuned in (11.0, 10.5)]

    found = compare_runs([make_run(name, report=report) for name, report in zip("ab", reports, strict=True)])

    assert best(line(found, "retention.prose.tuned")) == [False, True]
    assert best(line(found, "retention.prose.delta")) == [False, True]


def test_gains_on_other_rows_are_not_ranked(make_run: MakeRun) -> None:
    worse = make_report(TASK, {**HOLDOUT, "tuned": 0.5, "delta": 0.5}, target_gain=0.5)

    found = compare_runs([make_run("a"), make_run("b", report=worse, holdout=b"other rows")])

    assert best(line(found, "target.holdout.tuned")) == [False, False]
    assert best(line(found, "target_gain")) == [False, False]
    assert texts(line(found, "target_gain")) == ["+100.0", "+50.0"]


OF_RETENTION = {
    "forgetting": 0.01,
    "forgetting_upper": 0.02,
    "cumulative_forgetting": 0.01,
    "cumulative_forgetting_upper": 0.02,
    "origin_forgetting": 0.01,
    "backward_transfer": -0.01,
    "average_accuracy_tuned": 0.99,
}
"""Better than those of the reports that are made otherwise."""


def report_of(*tasks: dict[str, Any], better: bool) -> ForgettingReport:
    fields = {name: 2 * value for name, value in OF_RETENTION.items()} | {"average_accuracy_tuned": 0.9}
    return make_report(*tasks, HOLDOUT, **(OF_RETENTION if better else fields))


@pytest.mark.parametrize(
    ("others", "is_ranked"),
    [([TASK], True), ([{**TASK, "n": 100}], False), ([TASK, {**TASK, "task": "country_code"}], False)],
    ids=["the same tasks", "other documents", "another task"],
)
def test_what_was_lost_is_ranked_where_the_same_was_asked(
    make_run: MakeRun, others: list[dict[str, Any]], is_ranked: bool
) -> None:
    runs = [make_run("a", report=report_of(TASK, better=False)), make_run("b", report=report_of(*others, better=True))]

    found = compare_runs(runs)

    for name in OF_RETENTION:
        assert best(line(found, name.removesuffix("_tuned"))) == [False, is_ranked]


def test_scores_over_other_numbers_of_documents_are_not_ranked(make_run: MakeRun) -> None:
    other = make_report({**TASK, "tuned": 0.99, "delta": -0.01, "n": 20}, HOLDOUT)

    found = compare_runs([make_run("a"), make_run("b", report=other)])

    assert best(line(found, "retention.country_capital.tuned")) == [False, False]
    assert best(line(found, "retention.country_capital.delta")) == [False, False]


@pytest.mark.parametrize(("train", "is_ranked"), [(b"more rows", True), (b"easier rows", False)])
def test_losses_are_ranked_where_they_are_of_the_same_rows(make_run: MakeRun, train: bytes, is_ranked: bool) -> None:
    found = compare_runs([make_run("a"), make_run("b", train=train, losses=(4.0, 0.5))])

    assert best(line(found, "train_final_loss")) == [False, is_ranked]


@pytest.mark.parametrize(("tokens", "is_ranked"), [(900, True), (90, False)])
def test_distances_are_ranked_where_they_are_on_the_same_probe(make_run: MakeRun, tokens: int, is_ranked: bool) -> None:
    first, second = (
        ProbeComparison(
            documents=9, tokens=count, base_perplexity=8.0, tuned_perplexity=9.0, kl=kl, kl_low=None, kl_high=None,
            agreement=0.9,
        )
        for count, kl in ((900, 0.2), (tokens, 0.1))
    )  # fmt: skip

    found = compare_runs(
        [make_run("a", report=make_report(probe=first)), make_run("b", report=make_report(probe=second))]
    )

    assert best(line(found, "probe.kl")) == [False, is_ranked]


def test_scores_by_other_metrics_are_not_ranked(make_run: MakeRun) -> None:
    other = make_report({**TASK, "metric": "f1", "tuned": 0.99, "delta": -0.01}, HOLDOUT)

    found = compare_runs([make_run("a"), make_run("b", report=other)])

    assert best(line(found, "retention.country_capital.tuned")) == [False, False]


def test_a_task_that_one_run_was_not_asked_is_left_empty(make_run: MakeRun) -> None:
    more = make_report(TASK, {**TASK, "task": "country_code"}, HOLDOUT)

    found = compare_runs([make_run("a"), make_run("b", report=more)])

    assert texts(line(found, "retention.country_code.tuned")) == ["—", "97.0%"]
    titles = [section.title for section in found.sections]
    assert titles.index("target.holdout") > titles.index("retention.country_code")
