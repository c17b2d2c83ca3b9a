"""Ratios and goals of the benchmark of the evaluation."""

import pytest

from benchmarks.evaluation.report import describe_known, describe_memory, describe_overhead, describe_statistics
from benchmarks.report import Origin

ORIGIN = Origin(machine="a machine", command="a command")


def test_overhead_is_the_median_of_the_rounds_ratios() -> None:
    measured = {"ours": [2.0, 30.0, 11.0], "plain": [1.0, 29.0, 10.0], "documents": [1_368]}

    ratio, plain, ours = describe_overhead(ORIGIN, measured)

    assert (ratio.value, ratio.goal, ratio.met) == (1.1, 1.05, False)
    assert (plain.metric, plain.value) == ("plain lm-eval, 1,368 documents, wall time in s", 10.0)
    assert ours.value == 11.0


def test_known_model_is_held_against_two_seconds_without_the_loading_of_tasks() -> None:
    measured = {"measure_seconds": [1.5], "find_seconds": [0.5], "load_seconds": [3.0], "documents": [14_022]}

    known, *others = describe_known(ORIGIN, measured, prompt_bytes=2_831.4, model_bytes=430_000_000)

    assert known.metric == "known base model of 430 MB, 14,022 documents of 2,831 bytes, s"
    assert (known.value, known.goal, known.met) == (1.5, 2.0, True)
    assert [(one.value, one.goal) for one in others] == [(0.5, None), (3.0, None)]


def test_memory_of_two_models_is_given_in_those_of_one() -> None:
    ratio, one = describe_memory(ORIGIN, {"peak_bytes": [1_000.0]}, {"peak_bytes": [1_200.0]})

    assert (ratio.value, ratio.met) == (1.2, False)
    assert one.value == 1_000.0


def test_statistics_are_told_for_both_kinds_of_scores() -> None:
    measured = {"right_or_wrong": [0.4, 0.2], "shares": [3.0, 2.0]}

    results = describe_statistics(ORIGIN, measured, tasks=57, documents=14_022)

    assert [one.value for one in results] == pytest.approx([0.3, 2.5])
    assert results[0].metric == "statistics of 57 tasks, 14,022 documents, right-or-wrong scores, s"
