import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.evaluation.holdout.text_scores import answer_f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        (" The  Eiffel-Tower!\n", "eiffeltower"),
        ("an answer, and a reason", "answer and reason"),
        ("theatre", "theatre"),
        ("A", "a"),
        ("A.", "a"),
        ("+", "+"),
        ("", ""),
    ],
)
def test_spelling_variants_are_equal_but_nothing_becomes_empty(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


# Worked by hand: shared words, twice, over the words of both.
@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("cat sat", "a dog sat", 0.5),
        ("cat cat", "cat", 2 / 3),
        ("cat", "dog", 0.0),
        ("cat", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_f1_counts_shared_words(gold: str, answer: str, score: float) -> None:
    assert answer_f1(gold, answer) == pytest.approx(score)


@given(st.text(alphabet="ab the.A", max_size=20), st.text(alphabet="ab the.A", max_size=20))
def test_f1_is_symmetric_and_one_only_for_the_same_bag_of_words(one: str, other: str) -> None:
    score = answer_f1(one, other)

    assert score == answer_f1(other, one)
    assert 0.0 <= score <= 1.0
    assert (score == 1.0) == (sorted(normalize_answer(one).split()) == sorted(normalize_answer(other).split()))
