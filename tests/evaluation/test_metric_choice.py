import pytest

from osft.errors import EvaluationError
from osft.evaluation.metric_choice import choose_metric, is_higher_better


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        ([("acc", "none"), ("acc_norm", "none")], ("acc_norm", "none")),
        ([("exact_match", "strict-match"), ("exact_match", "flexible-extract")], ("exact_match", "strict-match")),
        ([("f1", "none"), ("exact_match", "none")], ("exact_match", "none")),
        ([("bleu", "none"), ("chrf", "none")], ("bleu", "none")),
    ],
)
def test_primary_metric_is_chosen_by_name(metrics: list[tuple[str, str]], chosen: tuple[str, str]) -> None:
    assert choose_metric("task", metrics) == chosen


@pytest.mark.parametrize(
    ("joined", "chosen"), [(("acc",), "acc"), (("f1", "acc"), "acc"), (("bleu",), "acc_norm"), ((), "acc_norm")]
)
def test_metric_that_the_group_joins_comes_first(joined: tuple[str, ...], chosen: str) -> None:
    metrics = [("f1", "none"), ("acc_norm", "none"), ("acc", "none")]

    assert choose_metric("task", metrics, joined=joined) == (chosen, "none")


@pytest.mark.parametrize(("declared", "chosen"), [(("bleu",), "bleu"), ((), "acc"), (("chrf",), "acc")])
def test_metric_that_the_task_declares_comes_first(declared: tuple[str, ...], chosen: str) -> None:
    metrics = [("bleu", "none"), ("acc", "none")]

    assert choose_metric("task", metrics, declared=declared) == (chosen, "none")


def test_task_without_metric_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="task 'empty' has no metric"):
        choose_metric("empty", [])


@pytest.mark.parametrize("direction", [True, False])
def test_direction_is_what_the_task_says(direction: bool) -> None:
    assert is_higher_better("task", "loss", {"loss": direction}) is direction


@pytest.mark.parametrize("directions", [{"loss": None}, {"acc": True}])
def test_metric_without_direction_is_an_error(directions: dict[str, bool | None]) -> None:
    with pytest.raises(EvaluationError, match="task 'odd': nothing says whether a higher loss .* Set higher_is_better"):
        is_higher_better("odd", "loss", directions)
