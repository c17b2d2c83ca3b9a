from collections.abc import Callable
from typing import Any

import pytest

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    DASH,
    bound_phrase,
    format_chance,
    format_change,
    format_interval,
    format_number,
    format_score,
    in_order,
    missing_interval,
    name_some,
    plain_values,
    verdict_sentence,
)
from osft.evaluation.report.points import MINUS

MakeTask = Callable[..., TaskComparison]
MakeReport = Callable[..., ForgettingReport]
PERPLEXITY = {"base": 12.0, "tuned": 12.5, "higher_is_better": False}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {},
            "may replace the base: it forgot 1.5 points (at most 3.2 with 95% confidence), and it gained 100.0 points "
            "on the new data.",
        ),
        ({"forgetting": 0.0}, "it forgot nothing measurable (at most 3.2 with 95% confidence), and it gained 100.0"),
        ({"target_gain": None}, "and what it gained was not measured."),
        ({"target_gain": -0.02}, "and it lost 2.0 points on the new data."),
        ({"target_gain": -0.0001}, "and it gained 0.0 points on the new data."),
    ],
)
def test_verdict_is_one_sentence(make_report: MakeReport, fields: dict[str, object], sentence: str) -> None:
    verdict = verdict_sentence(make_report(**{"forgetting_upper": 0.0316, "unbounded_tasks": ()} | fields))

    assert sentence in verdict
    assert verdict.count(". ") == 0


@pytest.mark.parametrize(
    ("fields", "begin"),
    [
        (
            {"forgetting": 0.0, "forgetting_upper": 0.474},
            "too few documents to tell, it may have forgotten up to 47.4 points (95% confidence), and it gained 100.0",
        ),
        (
            {"forgetting": 0.0, "forgetting_upper": 1e14, "unbounded_tasks": ("bleu",)},
            "too few documents to tell, it may have forgotten more than 1,000 points (95% confidence, chance in bleu "
            "left out), and",
        ),
        ({"forgetting": 0.2, "forgetting_upper": 0.3}, "it forgot 20.0 points (at most 30.0 with 95% confidence), and"),
        ({"target_gain": -0.02}, "it lost 2.0 points on the new data, and it forgot 1.5 points (at most 3.2 with"),
        (
            {"target_gain": 0.1, "settings": {"max_forgetting": 0.05, "min_target_gain": 0.3}},
            "it gained 10.0 points on the new data where 30.0 were asked for, and it forgot 1.5 points",
        ),
        ({"forgetting_upper": 0.05 + 1e-12}, "a limit of a single task is not kept, it forgot 1.5 points (at most 5.0"),
    ],
)
def test_verdict_of_a_failure_begins_with_what_failed(
    make_report: MakeReport, fields: dict[str, object], begin: str
) -> None:
    values = {"passed": False, "forgetting_upper": 0.0316, "unbounded_tasks": ()} | fields

    verdict = verdict_sentence(make_report(**values))

    assert verdict.startswith(f"The tuned model should not replace the base: {begin}")


@pytest.mark.parametrize(
    ("fields", "begin"),
    [
        (
            {"cumulative_forgetting": 0.12, "cumulative_forgetting_upper": 0.15},
            "small losses have added up to 12.0 points since its best versions, it forgot 1.5 points (at most 3.2",
        ),
        (
            {"cumulative_forgetting": 0.05, "cumulative_forgetting_upper": 0.15},
            "since its best versions it may have forgotten up to 15.0 points (95% confidence), it forgot 1.5 points",
        ),
        ({"forgetting": 0.2, "forgetting_upper": 0.3, "cumulative_forgetting_upper": 0.4}, "it forgot 20.0 points"),
        ({"target_gain": -0.02}, "it lost 2.0 points on the new data, and it forgot 1.5 points"),
    ],
)
def test_verdict_of_a_chain_begins_with_losses_that_added_up(
    make_report: MakeReport, chain_fields: dict[str, Any], fields: dict[str, object], begin: str
) -> None:
    values = chain_fields | {"passed": False, "forgetting_upper": 0.0316, "unbounded_tasks": ()} | fields

    verdict = verdict_sentence(make_report(**values))

    assert verdict.startswith(f"The tuned model should not replace the base: {begin}")
    assert verdict.count(". ") == 0


def test_verdict_of_a_broken_model_has_few_digits(make_report: MakeReport) -> None:
    verdict = verdict_sentence(make_report(forgetting=1.4e14, forgetting_upper=2.8e14, passed=False))

    assert "it forgot more than 1,000 points (no bound below 1,000 with 95% confidence, chance in prose" in verdict


def test_bound_names_the_tasks_that_it_leaves_out(make_report: MakeReport) -> None:
    assert bound_phrase(make_report(forgetting_upper=0.0316)) == (
        "at most 3.2 with 95% confidence, chance in prose left out"
    )


def test_verdict_without_a_bound_names_no_confidence(make_report: MakeReport, make_task: MakeTask) -> None:
    report = make_report(tasks=(make_task(loss_upper=None),), unbounded_tasks=("capitals[eu]",))

    assert (
        "it forgot 1.5 points (how much more is not known: no interval for capitals[eu]), and it gained"
        in verdict_sentence(report)
    )


def test_what_is_too_few_and_what_has_no_interval_are_both_named(make_report: MakeReport, make_task: MakeTask) -> None:
    tasks = (make_task(task="lone", n=1, loss_upper=None),)

    phrase = bound_phrase(make_report(tasks=tasks, too_few_documents=("lone",), unbounded_tasks=("bleu",)))

    assert phrase == "how much more is not known: too few documents in lone, no interval for bleu"


def test_verdict_of_too_few_documents_says_so_first(make_report: MakeReport) -> None:
    report = make_report(too_few_documents=("prose",), passed=False)

    assert (
        "it may have forgotten more than was measured (too few documents in prose), and it gained 100.0 points on"
        in verdict_sentence(report)
    )


def test_accuracies_are_percent_and_their_changes_points(make_task: MakeTask) -> None:
    task = make_task()

    assert format_score(task, task.tuned) == "97.0%"
    assert format_change(task, task.delta) == f"{MINUS}3.0"
    assert format_interval(task) == f"{MINUS}7.2 to +1.3"


def test_scores_above_one_are_written_as_they_are(make_task: MakeTask) -> None:
    task = make_task(**PERPLEXITY, delta=-0.5, ci_low=None, ci_high=None)

    assert format_score(task, task.tuned) == "12.5"
    assert format_change(task, task.delta) == f"{MINUS}0.5"
    assert format_interval(task) == DASH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.3456, "12.35"),
        (123456.7, "123,457"),
        (-0.00012, f"{MINUS}0.00012"),
        (0.0, "0"),
        (137601339332617.0, "1.376e+14"),
    ],
)
def test_numbers_are_short_and_no_powers_of_ten_unless_they_are_huge(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(("p_value", "text"), [(0.0412, "p = 0.041"), (1e-12, "p < 0.001"), (1.0, "p = 1.000")])
def test_a_tiny_probability_is_not_written_as_zero(p_value: float, text: str) -> None:
    assert format_chance(p_value) == text


@pytest.mark.parametrize(("n", "text"), [(1, "one document: no interval"), (5, "no interval")])
def test_a_task_without_an_interval_says_so(make_task: MakeTask, n: int, text: str) -> None:
    assert missing_interval(make_task(n=n, ci_low=None, ci_high=None)) == text
    assert missing_interval(make_task(n=n)) is None


def test_many_names_are_counted() -> None:
    assert name_some(["a", "b"]) == "a, b"
    assert name_some([str(number) for number in range(80)]) == "0, 1, 2, 3, 4, 5 and 74 more"
    assert name_some([]) == ""


def test_a_name_cannot_turn_round_a_sentence() -> None:
    assert in_order("facts\u202e\u2066 lost\u200f 3.0 points") == "facts lost 3.0 points"
    assert name_some(["a\u202eb", "مرحبا"]) == "ab, مرحبا"


def test_settings_become_text_without_what_was_not_given() -> None:
    values = {
        "seed": 20260,
        "rows_train": 12345,
        "limit": None,
        "generation": {},
        "apply_chat_template": True,
        "tasks": ["arc_easy", "gsm8k"],
        "shots": {"arc_easy": 0, "gsm8k": 5},
        "task_versions": {"a": 1.0, "b": 1.0, "c": 1.0},
        "deep": {"one": {"two": 2}},
    }

    assert plain_values(values) == {
        "seed": "20260",
        "rows train": "12,345",
        "apply chat template": "yes",
        "tasks": "arc_easy, gsm8k",
        "shots": {"arc_easy": "0", "gsm8k": "5"},
        "task versions": "1.0 for each of 3",
        "deep": {"one": "two: 2"},
    }
