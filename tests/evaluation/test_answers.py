from typing import Any

import pytest

from osft.evaluation.answers import describe_document


def sample(arguments: list[tuple], responses: list[Any], target: Any) -> dict[str, Any]:
    return {"arguments": arguments, "filtered_resps": responses, "target": target}


def test_generated_text_is_the_answer() -> None:
    described = describe_document(sample([("question", {"until": []})], ["text"], "gold"), "exact_match")

    assert (described.prompt, described.gold, described.answer) == ("question", "gold", "text")


@pytest.mark.parametrize(("metric", "answer"), [("acc", "no"), ("acc_norm", "certainly")])
def test_choice_is_the_likeliest_by_the_metrics_own_measure(metric: str, answer: str) -> None:
    arguments = [("question", " no"), ("question", " certainly")]

    described = describe_document(sample(arguments, [(-2.0, False), (-3.0, False)], 0), metric)

    assert (described.gold, described.answer) == ("no", answer)


def test_choice_between_prompts_shows_the_prompts() -> None:
    arguments = [("He ran", " away"), ("She ran", " away")]

    described = describe_document(sample(arguments, [(-2.0, False), (-1.0, False)], 0), "acc")

    assert (described.prompt, described.gold, described.answer) == ("", "He ran", "She ran")


def test_requests_without_context_are_no_choices() -> None:
    arguments = [("question", " a"), ("question", " b"), ("", " a"), ("", " b")]

    described = describe_document(
        sample(arguments, [(-2.0, False), (-1.0, False), (0.0, False), (0.0, False)], 0), "acc"
    )

    assert described.answer == "b"


def test_turn_that_the_model_would_not_say_is_told_apart() -> None:
    arguments = [("Q1", "A1", [1], [2]), ("Q1 A1 Q2", "A2", [1, 2, 3], [4])]

    described = describe_document(sample(arguments, [(-0.1, True), (-4.0, False)], "A1\nA2"), "acc")

    assert described.prompt == "Q1 A1 Q2"
    assert described.answer == "A1\n(another text is more likely; log-likelihood of this answer: -4.00)"


def test_text_without_question_shows_its_loglikelihood() -> None:
    described = describe_document(sample([("all of it",)], [-12.5], "all of it"), "word_perplexity")

    assert (described.prompt, described.answer) == ("", "log-likelihood -12.50")


def test_several_right_answers_are_shown_side_by_side() -> None:
    assert describe_document(sample([("q", {})], ["x"], ["a", "b"]), "exact_match").gold == "a | b"
