from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from osft.errors import EvaluationError, WorkspaceError
from osft.sweep.choice import RatioChoice, choose_ratio, fail_unless_one_passed
from osft.workspace import write_json
from tests.sweep.sweeps import measured_of, right, without_leaves

Scores = Mapping[float, Mapping[str, list[float]]]


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., RatioChoice]:
    def choose(tuned: Scores, **limits: float) -> RatioChoice:
        return choose_ratio(measured_of(tmp_path, tuned, **limits))

    return choose


def learnt(kept: int, new: int) -> dict[str, list[float]]:
    """Scores of a model that answers so many documents of 200 of what was to be kept, and of what was to be learnt."""
    return {"kept": right(kept), "new": right(new)}


def test_the_highest_gain_is_taken_where_it_is_told_from_the_others(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: learnt(200, 60), 0.25: learnt(199, 90), 0.5: learnt(198, 120)})

    assert (choice.ratio, choice.run_id, choice.passed) == (0.5, "sweep-ratio-0.5", True)
    assert choice.why == (
        "Ratio 0.5 is taken: its gain of 60.0 points is the highest of the 3 that passed, and by more than chance."
    )


def test_of_gains_that_cannot_be_told_apart_the_one_is_taken_that_forgot_least(
    choose: Callable[..., RatioChoice],
) -> None:
    choice = choose({0.1: learnt(200, 60), 0.25: learnt(199, 119), 0.5: learnt(198, 120), 1.0: learnt(197, 118)})

    assert choice.ratio == 0.25
    assert choice.why == (
        "Ratio 0.25 is taken: it forgot least of the 3 whose gain cannot be told from the highest, "
        "60.0 points at ratio 0.5."
    )
    behind = [one.behind for one in choice.outcomes]
    assert [one.is_clear if one else None for one in behind] == [True, False, None, False]


def test_the_highest_gain_is_also_taken_if_it_forgot_least(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: learnt(199, 120), 0.5: learnt(198, 119)})

    assert choice.why == (
        "Ratio 0.1 is taken: its gain of 60.0 points is the highest, and of the 2 that cannot be told from it, "
        "it forgot least."
    )


def in_groups(kept: int, new: int) -> dict[str, list[float]]:
    """Scores as :func:`learnt` gives, both of groups that are scored as one, and of held-out rows."""
    groups = {f"{group}.{part}": right(number) for group, number in (("kept", kept), ("new", new)) for part in "ab"}
    return groups | {"holdout": right(new)}


def test_with_groups_that_are_scored_as_one_the_highest_gain_is_taken(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: in_groups(200, 2), 0.5: in_groups(199, 190)})

    assert choice.why == (
        "Ratio 0.5 is taken: its gain of 95.0 points is the highest of the 2 that passed, and by more than chance."
    )


def test_with_groups_that_are_scored_as_one_gains_may_be_too_alike_to_be_told_apart(
    choose: Callable[..., RatioChoice],
) -> None:
    choice = choose({0.1: in_groups(200, 189), 0.5: in_groups(199, 190)})

    assert choice.ratio == 0.1
    assert choice.outcomes[0].behind.low < 0 < choice.outcomes[0].behind.high


@pytest.mark.parametrize("new", [2, 189])
def test_where_answers_cannot_be_paired_the_highest_measured_gain_is_taken(tmp_path: Path, new: int) -> None:
    measured = measured_of(tmp_path, {0.1: in_groups(200, new), 0.5: in_groups(199, 190), 1.0: in_groups(200, 1)})
    older = [replace(one, answers=without_leaves(one.answers)) for one in measured]

    choice = choose_ratio(older)

    assert choice.why == (
        "Ratio 0.5 is taken: its gain of 95.0 points is the highest measured of the 3 that passed; not all answers "
        "could be paired, so chance is not ruled out."
    )
    assert [one.behind.is_paired if one.behind else None for one in choice.outcomes] == [False, None, False]


def test_of_models_that_are_alike_the_smaller_ratio_is_taken(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.5: learnt(199, 120), 0.25: learnt(199, 120), 1.0: learnt(199, 120)})

    assert choice.ratio == 0.25


def test_a_model_that_did_not_pass_is_not_taken_for_its_gain(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: learnt(200, 60), 0.25: learnt(199, 61), 0.5: learnt(150, 200)})

    assert (choice.ratio, choice.passed) == (0.1, True)
    assert choice.outcomes[2].behind.value < 0
    assert [one.passed for one in choice.outcomes] == [True, True, False]


def test_the_only_model_that_passed_is_taken(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: learnt(200, 10), 0.5: learnt(150, 200)})

    assert choice.why == "Ratio 0.1 is taken: its model is the only one that passed."


def test_where_none_passed_the_best_of_all_is_shown(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: learnt(170, 60), 0.5: learnt(150, 120)})

    assert (choice.ratio, choice.passed) == (0.5, False)
    assert choice.why == (
        "No model passed and none is promoted. Ratio 0.5 would be taken: its gain of 60.0 points is the highest "
        "of the 2, and by more than chance."
    )


def test_without_a_target_task_the_one_is_taken_that_forgot_least(choose: Callable[..., RatioChoice]) -> None:
    choice = choose({0.1: {"kept": right(198)}, 0.5: {"kept": right(199)}})

    assert choice.ratio == 0.5
    assert choice.chosen.gain is None
    assert choice.why == (
        "Ratio 0.5 is taken: it forgot least of the 2 that passed, and what they gained was not measured."
    )


def test_a_choice_is_read_back_as_it_was_written(choose: Callable[..., RatioChoice], tmp_path: Path) -> None:
    choice = choose({0.1: learnt(200, 60), 0.5: learnt(150, 120)})

    choice.save(tmp_path)

    assert RatioChoice.load(tmp_path) == choice
    assert choice.outcomes[1].train_seconds == 50
    assert choice.max_forgetting == 0.05


@pytest.mark.parametrize("content", [{}, {"schema": "osft.ratio-choice/v9"}])
def test_another_file_is_no_choice(tmp_path: Path, content: dict[str, str]) -> None:
    write_json(tmp_path / "choice.json", content)

    with pytest.raises(WorkspaceError, match=r"choice.json: no choice of a ratio \(.*schema.*\). Retry the sweep."):
        RatioChoice.load(tmp_path)


def test_a_sweep_that_must_pass_fails_with_the_reasons_of_the_best(
    choose: Callable[..., RatioChoice], tmp_path: Path
) -> None:
    choice = choose({0.1: learnt(170, 60), 0.5: learnt(150, 120)})

    with pytest.raises(EvaluationError, match=r"No model passed .* Forgetting is 25.0 points.* The report is .*page"):
        fail_unless_one_passed(choice, tmp_path / "page.html")


def test_a_sweep_that_passed_does_not_fail(choose: Callable[..., RatioChoice], tmp_path: Path) -> None:
    choice = choose({0.1: learnt(200, 60), 0.5: learnt(199, 120)})

    fail_unless_one_passed(choice, tmp_path / "page.html")
