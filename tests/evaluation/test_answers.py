from typing import Any

import pytest

from osft.evaluation.answers import NO_TEXT, OTHER_TOKENS, DocumentDescription, describe_document

SETTINGS = {"max_gen_toks": 8, "until": ["<|im_end|>"]}


def describe(arguments: list[tuple], responses: list[Any], target: Any, metric: str = "acc", **scores: float) -> Any:
    sample = {"arguments": arguments, "filtered_resps": responses, "target": target} | scores
    return describe_document(sample, metric)


def test_generated_text_is_the_answer() -> None:
    described = describe([("question", {"until": []})], ["text"], "gold", "exact_match")

    assert described == DocumentDescription(prompt="question", gold="gold", answer="text")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", NO_TEXT),
        (None, NO_TEXT),
        ([], NO_TEXT),
        (["a", "b"], "a | b"),
        ([["a", "b"], ["c"]], "a | b | c"),
        (["a", 1], "a | 1"),
        (3, "3"),
        (0.5, "0.5"),
        ([0.5, True], "0.5 | True"),
    ],
)
def test_filters_of_generated_text_may_give_anything(response: Any, answer: str) -> None:
    assert describe([("question", {})], [response], "gold").answer == answer


@pytest.mark.parametrize(
    ("target", "gold"), [(["a", "b"], "a | b"), ([["a"], "b"], "a | b"), ("", NO_TEXT), (7, "7"), ([], NO_TEXT)]
)
def test_targets_of_generated_text_may_be_anything(target: Any, gold: str) -> None:
    assert describe([("q", {})], ["x"], target).gold == gold


def test_likelihoods_beside_a_generated_text_are_left_out() -> None:
    arguments = [("question", {"until": []}), ("question", " unanswerable")]

    assert describe(arguments, ["text", (-3.0, False)], ["gold"], "exact").answer == "text"


@pytest.mark.parametrize(("metric", "answer"), [("acc", "no"), ("acc_norm", "certainly"), ("acc_bytes", "certainly")])
def test_choice_is_the_likeliest_by_the_metrics_own_measure(metric: str, answer: str) -> None:
    arguments = [("question", " no"), ("question", " certainly")]

    described = describe(arguments, [(-2.0, False), (-3.0, False)], 0, metric)

    assert described == DocumentDescription(prompt="question", gold="no", answer=answer)


@pytest.mark.parametrize(
    ("target", "gold"),
    [
        (1, "yes"),
        ([0, 1], "no | yes"),
        ("yes", "yes"),
        (["no", "yes"], "no | yes"),
        (2, "(choice 2 of 2, which does not exist)"),
        (-100, "(choice -100 of 2, which does not exist)"),
        ([1, -100], "yes | (choice -100 of 2, which does not exist)"),
    ],
)
def test_right_choice_is_shown_however_the_task_names_it(target: Any, gold: str) -> None:
    described = describe([("question", " no"), ("question", " yes")], [(-2.0, False), (-3.0, False)], target)

    assert described.gold == gold


@pytest.mark.parametrize(
    ("score", "gold"), [(1.0, "She ran away"), (0.0, "He ran away"), (None, "away")], ids=["right", "wrong", "unscored"]
)
def test_choice_between_prompts_shows_whole_texts_and_the_right_one_by_the_score(score: Any, gold: str) -> None:
    arguments = [("He ran", " away"), ("She ran", " away")]

    described = describe(arguments, [(-2.0, False), (-1.0, False)], "away", acc=score)

    assert described == DocumentDescription(prompt="", gold=gold, answer="She ran away")


def test_requests_without_context_are_no_choices() -> None:
    arguments = [("question", " a"), ("question", " b"), ("", " a"), ("", " b")]

    described = describe(arguments, [(-2.0, False), (-1.0, False), (0.0, False), (0.0, False)], 0)

    assert described.answer == "b"


def test_choices_may_be_all_there_is() -> None:
    described = describe([("", " good"), ("", " bad")], [(-2.0, False), (-1.0, False)], 0)

    assert described == DocumentDescription(prompt="", gold="good", answer="bad")


def test_first_of_several_likelihoods_is_taken() -> None:
    arguments = [("question", " a"), ("question", " b")]

    described = describe(arguments, [[(-2.0, False), (-9.0, False)], [(-3.0, False), (-1.0, False)]], 0)

    assert described.answer == "a"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ((-0.1, True), "the end"),
        ((-4.0, False), "(another text is more likely; log-likelihood of this answer: -4.00)"),
    ],
)
def test_single_text_is_the_answer_where_the_model_would_say_it(response: tuple, answer: str) -> None:
    assert describe([("question", " the end")], [response], "the end").answer == answer


def test_text_without_question_shows_its_loglikelihood() -> None:
    described = describe([("all of it",)], [-12.5], "all of it", "word_perplexity")

    assert described == DocumentDescription(prompt="", gold="all of it", answer="log-likelihood -12.50")


def test_turn_that_the_model_would_not_say_is_told_apart() -> None:
    arguments = [("Q1", "A1", [1], [2]), ("Q1 A1 Q2", "A2", [1, 2, 3], [4])]

    described = describe(arguments, [(-0.1, True), (-4.0, False)], "A1\nA2")

    assert described.prompt == "Q1 A1 Q2"
    assert described.gold == "[turn 1 of 2] A1\n[turn 2 of 2] A2"
    assert described.answer == (
        "[turn 1 of 2] A1\n[turn 2 of 2] (another text is more likely; log-likelihood of this answer: -4.00)"
    )


@pytest.mark.parametrize(
    ("is_greedy", "written", "answer"),
    [
        (True, "Paris", "Paris"),
        (False, "Rome", "Rome"),
        (False, "", NO_TEXT),
        (False, " Paris", f"Paris\n{OTHER_TOKENS}"),
    ],
)
def test_written_text_is_shown_for_the_last_turn(is_greedy: bool, written: str, answer: str) -> None:
    arguments = [("Where?", "Paris<|im_end|>\n", [1], [2]), ("", [1], SETTINGS)]

    described = describe(arguments, [(-1.0, is_greedy), written], "not looked at")

    assert described == DocumentDescription(prompt="Where?", gold="Paris<|im_end|>", answer=answer)
