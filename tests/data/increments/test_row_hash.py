from typing import Any

import pytest

from osft.data.increments.row_hash import row_hash

QUESTION = {"role": "user", "content": "Symbol of iron?"}
ANSWER = {"role": "assistant", "content": "Fe"}
hash_conversation = row_hash("messages", "document")


def test_the_hashes_of_earlier_versions_stay_what_they_were() -> None:
    documents, tokens = row_hash("documents", "text"), row_hash("processed", "text")
    thought = {**ANSWER, "reasoning_content": "Ferrum."}

    assert hash_conversation({"messages": [QUESTION, ANSWER]}).hex() == "8acbaaae84584762b3db0d15f3b3aa0c"
    assert (
        hash_conversation({"messages": [QUESTION, thought], "unmask": True}).hex() == "5717def6af7a78be3fe2e0c6772df9dd"
    )
    assert documents({"text": "Eisen heißt Ferrum."}).hex() == "ea232f2edc0378e3db3f3c6d99354fa0"
    assert tokens({"input_ids": [1, 2], "labels": [-100, 2]}).hex() == "f7e34a82a0bbe3e603df2a1b3927b78e"


@pytest.mark.parametrize(
    "row",
    [
        {"id": 7, "messages": [QUESTION, ANSWER], "source": "a"},
        {"messages": [{"content": "Symbol of iron?", "role": "user", "name": "Ann"}, ANSWER]},
        {"messages": [QUESTION, {**ANSWER, "reasoning_content": None}], "unmask": None},
        {"messages": [QUESTION, {**ANSWER, "reasoning_content": ""}], "unmask": False},
    ],
)
def test_what_is_not_trained_does_not_count(row: dict[str, Any]) -> None:
    assert hash_conversation(row) == hash_conversation({"messages": [QUESTION, ANSWER]})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER], "unmask": True},
        {"messages": [QUESTION, {**ANSWER, "reasoning_content": "Ferrum."}]},
        {"messages": [QUESTION, {**ANSWER, "content": "fe"}]},
        {"messages": [QUESTION, {**ANSWER, "role": "pretraining"}]},
        {"messages": [ANSWER, QUESTION]},
        {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]},
    ],
)
def test_what_is_trained_counts(row: dict[str, Any]) -> None:
    assert hash_conversation(row) != hash_conversation({"messages": [QUESTION, ANSWER]})


def test_a_reasoning_is_not_taken_for_a_message() -> None:
    thought = {"messages": [{**ANSWER, "reasoning_content": "user"}, {"role": "assistant", "content": "Au"}]}
    said = {"messages": [ANSWER, {"role": "user", "content": "assistant"}, {"role": "assistant", "content": "Au"}]}

    assert hash_conversation(thought) != hash_conversation(said)
