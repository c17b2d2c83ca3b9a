import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.data.validation.json_lines import has_keys, measure
from osft.data.validation.plain_rows import plain_check
from osft.data.validation.rows import IGNORED_LABEL, MAX_TOKEN_ID, RowFacts, row_checker

SMALL_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text('":\\ a', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('":\\ a', max_size=3), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "assistant", "pretraining", "tool"]) | SMALL_JSON,
        "content": st.sampled_from(["Fe.", "x" * 8, "x" * 9, " "]) | SMALL_JSON,
    },
    optional={"reasoning_content": st.none() | st.just("R") | SMALL_JSON, "name": SMALL_JSON},
)
TOKENS = st.lists(
    st.sampled_from([0, 1, MAX_TOKEN_ID, 1, 2, 3]) | st.sampled_from([True, 1.5, -1, MAX_TOKEN_ID + 1]), max_size=4
)
LABELS = st.lists(st.sampled_from([IGNORED_LABEL, IGNORED_LABEL, 0, 5, -1, -101, True]), max_size=4)
ROWS = {
    "messages": st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, max_size=4)}, optional={"unmask": st.booleans() | SMALL_JSON, "id": SMALL_JSON}
    ),
    "processed": st.fixed_dictionaries(
        {"input_ids": TOKENS, "labels": LABELS | SMALL_JSON}, optional={"n": SMALL_JSON}
    ),
    "documents": st.fixed_dictionaries({}, optional={"text": SMALL_JSON | st.just("A."), "id": SMALL_JSON}),
}
USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize("data_format", list(ROWS))
@pytest.mark.parametrize("unmask_messages", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_row_that_is_plain_has_no_problem_and_the_same_facts(
    data: st.DataObject, data_format: str, unmask_messages: bool
) -> None:
    row = data.draw(ROWS[data_format])
    facts, plain_facts = RowFacts(), RowFacts()

    keys = plain_check(data_format, "text", unmask_messages=unmask_messages)(row, plain_facts)
    problems = list(row_checker(data_format, "text", unmask_messages=unmask_messages)(row, facts))

    if keys >= 0:
        assert problems == []
        assert plain_facts == facts
        assert keys == measure(row)[0]


@pytest.mark.parametrize(
    ("data_format", "row"),
    [
        ("messages", {"messages": [USER, ASSISTANT]}),
        ("messages", {"messages": [{"role": "system", "content": "S"}, USER, ASSISTANT, USER]}),
        ("messages", {"messages": [USER], "unmask": True}),
        ("messages", {"messages": [USER, {**ASSISTANT, "reasoning_content": "R"}], "id": 1, "meta": {"a": [{}]}}),
        ("messages", {"messages": [{**USER, "name": None, "reasoning_content": None}, ASSISTANT]}),
        ("processed", {"input_ids": [0, MAX_TOKEN_ID], "labels": [IGNORED_LABEL, 0]}),
        ("documents", {"text": "A text.", "meta": {"a": 1}}),
    ],
)
def test_a_usual_row_is_plain(data_format: str, row: dict[str, Any]) -> None:
    keys = plain_check(data_format, "text", unmask_messages=False)(row, RowFacts())

    assert keys == measure(row)[0]


PAIRS = st.recursive(
    st.none() | st.text('":\\ a{', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(st.text('":\\ ab', max_size=2), inner), max_size=4),
    max_leaves=10,
)


def write_pairs(value: Any, colon: str) -> tuple[str, int]:
    """Return lists of pairs as JSON objects, a key twice where it is there twice, and the number of keys."""
    if not isinstance(value, list):
        return json.dumps(value), 0
    is_object = bool(value) and all(isinstance(item, tuple) for item in value)
    parts = [write_pairs(item[1] if is_object else item, colon) for item in value]
    keys = sum(count for _, count in parts) + (len(value) if is_object else 0)
    if not is_object:
        return "[" + ",".join(text for text, _ in parts) + "]", keys
    fields = [json.dumps(item[0]) + colon + text for item, (text, _) in zip(value, parts, strict=True)]
    return "{" + ",".join(fields) + "}", keys


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS, colon=st.sampled_from([":", ": ", " :", "\t : "]))
def test_a_key_that_is_there_twice_is_seen_by_counting(pairs: Any, colon: str) -> None:
    text, keys_written = write_pairs(pairs, colon)

    keys_parsed, _ = measure(json.loads(text))

    assert has_keys(text.encode(), keys_parsed) == (keys_parsed == keys_written)
