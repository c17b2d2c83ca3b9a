import copy
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.data.validation.conversions import ROLE_OF_SPEAKER, SHAPES, convert, original_path, output_format, recognize
from osft.data.validation.rows import RowFacts, row_checker

check_messages = row_checker("messages", "document")
FOREIGN = ("sharegpt", "alpaca", "prompt_completion")
COLUMNS = ("messages", "conversations", "instruction", "input", "context", "output", "response", "system", "history")
KEYS = (
    *COLUMNS,
    "prompt",
    "completion",
    "label",
    "unmask",
    "input_ids",
    "document",
    "from",
    "role",
    "value",
    "content",
)

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not text.isspace()
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(
    scalars | st.sampled_from(list(ROLE_OF_SPEAKER)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
any_rows = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


@st.composite
def sharegpt_rows(draw: st.DrawFn) -> dict[str, Any]:
    speaker_key, value_key = draw(st.sampled_from([("from", "value"), ("role", "content"), ("from", "content")]))
    questions = draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
    people = draw(st.sampled_from(["human", "user"]))
    model = draw(st.sampled_from([name for name, role in ROLE_OF_SPEAKER.items() if role == "assistant"]))
    turns = [
        {speaker_key: speaker, value_key: text}
        for pair in questions
        for speaker, text in zip((people, model), pair, strict=True)
    ]
    return without_nulls({"id": draw(optional(texts)), "system": draw(optional(texts)), "conversations": turns})


@st.composite
def alpaca_rows(draw: st.DrawFn) -> dict[str, Any]:
    history = st.lists(st.tuples(texts, texts).map(list), max_size=2)
    output_key, input_key = draw(st.sampled_from(["output", "response"])), draw(st.sampled_from(["input", "context"]))
    row = {"instruction": draw(texts), output_key: draw(texts), input_key: draw(optional(st.just("") | texts))}
    return without_nulls(row | {"system": draw(optional(texts)), "history": draw(optional(history))})


@st.composite
def prompt_rows(draw: st.DrawFn) -> dict[str, Any]:
    completion_key = draw(st.sampled_from(["completion", "response"]))
    prompt = draw(texts | texts.map(lambda text: [{"role": "user", "content": text}]))
    completion = draw(texts | texts.map(lambda text: [{"role": "assistant", "content": text}]))
    return without_nulls({"prompt": prompt, completion_key: completion, "system": draw(optional(texts))})


whole_rows = (
    sharegpt_rows().map(lambda row: ("sharegpt", row))
    | alpaca_rows().map(lambda row: ("alpaca", row))
    | prompt_rows().map(lambda row: ("prompt_completion", row))
)
# Whole rows in which some columns were overwritten by anything.
damaged_rows = st.tuples(whole_rows, any_rows).map(lambda drawn: (drawn[0][0], drawn[0][1] | drawn[1]))


def converted(row: dict[str, Any], shape: str) -> dict[str, Any]:
    result = convert(row, shape)
    assert isinstance(result, dict), result
    return result


def problems_of(row: dict[str, Any], shape: str) -> list[tuple[str, str]]:
    result = convert(row, shape)
    assert isinstance(result, list), result
    return [(code, path) for code, path, _ in result]


def value_at(row: dict[str, Any], path: str) -> Any:
    value: Any = row
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": [], "conversations": [], "input_ids": [], "document": "x"}, "messages"),
        ({"input_ids": [1], "labels": [1], "document": "x"}, "processed"),
        ({"conversations": [], "instruction": "a", "output": "b"}, "sharegpt"),
        ({"instruction": "a", "output": "b", "prompt": "c"}, "alpaca"),
        ({"instruction": "a", "context": "", "response": "b"}, "alpaca"),
        ({"instruction": "a", "output": "", "response": "b"}, "alpaca"),
        ({"prompt": "a", "completion": "b", "document": "c"}, "prompt_completion"),
        ({"prompt": [], "response": "b"}, "prompt_completion"),
        ({"document": "a", "id": 1}, "documents"),
        ({"question": "a", "answer": "b"}, None),
        ({}, None),
    ],
)
def test_a_row_is_recognized_by_its_keys(row: dict[str, Any], shape: str | None) -> None:
    assert recognize(row, "document") == shape


def test_the_column_of_documents_is_the_one_given() -> None:
    assert recognize({"text": "a"}, "text") == "documents"


def test_a_null_column_counts_as_absent() -> None:
    row = {"messages": None, "conversations": None, "instruction": "a", "input": None, "output": "b"}

    assert recognize(row, "document") == "alpaca"
    assert converted(row, "alpaca")["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_a_part_of_a_shape_is_recognized_if_no_whole_one_is_there() -> None:
    assert recognize({"prompt": "a", "text": "b"}, "text") == "documents"
    assert recognize({"prompt": "a", "chosen": "b"}, "text") == "prompt_completion"
    assert recognize({"messages": None, "instruction": "a"}, "text") == "alpaca"
    assert recognize({"messages": None}, "text") == "messages"


def test_rows_of_every_chat_shape_go_on_as_messages() -> None:
    formats = {shape: output_format(shape) for shape in SHAPES}

    assert formats == dict.fromkeys(("messages", *FOREIGN), "messages") | {
        "documents": "documents",
        "processed": "processed",
    }


@pytest.mark.parametrize("shape", ["messages", "documents", "processed"])
def test_a_row_that_needs_no_conversion_is_returned_as_it_is(shape: str) -> None:
    row = {"messages": [], "document": "x", "input_ids": [1]}

    assert convert(row, shape) is row


def test_a_sharegpt_row_becomes_messages_and_keeps_its_other_keys() -> None:
    turns = [
        {"from": "human", "value": "Q1"},
        {"from": "gpt", "value": "A1", "weight": 1},
        {"from": "user", "value": "Q2"},
        {"from": "bing", "value": "A2"},
    ]
    row = {"id": "x-1", "unmask": True, "system": "Be short.", "conversations": turns}

    assert converted(row, "sharegpt") == {
        "id": "x-1",
        "unmask": True,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "A1", "weight": 1},
            {"role": "user", "content": "Q2"},
            {"role": "assistant", "content": "A2"},
        ],
    }


def test_conversations_may_use_role_and_content_and_carry_reasoning() -> None:
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "R"},
    ]

    assert converted({"conversations": turns}, "sharegpt")["messages"] == turns


def test_an_alpaca_row_joins_instruction_and_input_by_a_blank_line() -> None:
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog", "text": "..."}

    assert converted(row, "alpaca") == {
        "text": "...",
        "messages": [{"role": "user", "content": "Translate.\n\nHund"}, {"role": "assistant", "content": "dog"}],
    }


@pytest.mark.parametrize(("instruction", "given", "question"), [("I", " ", "I"), ("", "X", "X"), ("", "", "")])
def test_a_blank_instruction_or_input_leaves_the_other(instruction: str, given: str, question: str) -> None:
    row = {"instruction": instruction, "input": given, "output": "b"}

    assert converted(row, "alpaca")["messages"][0]["content"] == question


def test_an_alpaca_history_comes_between_system_and_question() -> None:
    row = {"instruction": "Q2", "output": "A2", "system": "S", "history": [["Q1", "A1"]]}

    messages = converted(row, "alpaca")["messages"]

    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "S"),
        ("user", "Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", "A2"),
    ]


def test_names_of_dolly_are_read_and_what_is_not_used_is_kept() -> None:
    row = {"instruction": "Q", "context": "C", "response": "A", "category": "closed_qa"}

    assert converted(row, "alpaca") == {
        "category": "closed_qa",
        "messages": [{"role": "user", "content": "Q\n\nC"}, {"role": "assistant", "content": "A"}],
    }


def test_of_two_names_for_one_thing_the_one_with_text_is_read() -> None:
    row = {"instruction": "Q", "input": " ", "context": "C", "output": "", "response": "A"}

    assert converted(row, "alpaca")["messages"] == [
        {"role": "user", "content": "Q\n\nC"},
        {"role": "assistant", "content": "A"},
    ]


def test_the_text_of_prompt_and_completion_is_not_changed() -> None:
    row = {"prompt": "The sky is", "completion": " blue.", "response": "kept"}

    assert converted(row, "prompt_completion") == {
        "response": "kept",
        "messages": [{"role": "user", "content": "The sky is"}, {"role": "assistant", "content": " blue."}],
    }


def test_prompt_and_completion_may_be_lists_of_messages() -> None:
    question = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    answer = [{"role": "assistant", "content": "A"}]

    row = converted({"prompt": question, "completion": answer}, "prompt_completion")

    assert row == {"messages": question + answer}


@pytest.mark.parametrize("system", [None, "", " \n"])
@pytest.mark.parametrize("shape", FOREIGN)
def test_a_blank_system_column_is_no_message(shape: str, system: str | None) -> None:
    rows: dict[str, dict[str, Any]] = {
        "sharegpt": {"conversations": [{"from": "gpt", "value": "A"}]},
        "alpaca": {"instruction": "Q", "output": "A"},
        "prompt_completion": {"prompt": "Q", "completion": "A"},
    }

    result = converted(rows[shape] | {"system": system}, shape)

    assert "system" not in result
    assert "system" not in [message["role"] for message in result["messages"]]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, [("sharegpt-not-a-list", "conversations")]),
        ({"conversations": "text"}, [("sharegpt-not-a-list", "conversations")]),
        ({"conversations": [7]}, [("sharegpt-turn-not-an-object", "conversations[0]")]),
        ({"conversations": [{"value": "x"}]}, [("sharegpt-speaker-missing", "conversations[0].from")]),
        ({"conversations": [{"from": [], "value": "x"}]}, [("sharegpt-speaker-unknown", "conversations[0].from")]),
        (
            {"conversations": [{"role": "nobody", "value": "x"}]},
            [("sharegpt-speaker-unknown", "conversations[0].role")],
        ),
        ({"conversations": [{"from": "gpt"}]}, [("sharegpt-value-missing", "conversations[0].value")]),
        ({"conversations": [{"from": "gpt", "value": 1}]}, [("sharegpt-value-not-text", "conversations[0].value")]),
        ({"conversations": [], "system": 5}, [("system-not-text", "system")]),
        (
            {"conversations": [{"from": "gpt", "value": "x"}, {}]},
            [
                ("sharegpt-speaker-missing", "conversations[1].from"),
                ("sharegpt-value-missing", "conversations[1].value"),
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_sharegpt_row_is_named(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems_of(row, "sharegpt") == expected


@pytest.mark.parametrize("speaker", ["tool", "function_call", "observation"])
def test_a_turn_of_a_tool_cannot_be_converted(speaker: str) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}, {"from": speaker, "value": "{}"}]

    result = convert({"conversations": turns}, "sharegpt")

    message = f"Turns of '{speaker}' cannot be trained: the messages format has no tool calls. Remove the row."
    assert result == [("sharegpt-tool-turn", "conversations[2].from", message)]


def test_a_long_speaker_does_not_fill_the_message() -> None:
    result = convert({"conversations": [{"from": "x" * 5_000, "value": "A"}]}, "sharegpt")

    assert isinstance(result, list)
    assert len(result[0][2]) < 200


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, [("alpaca-instruction-missing", "instruction"), ("alpaca-output-missing", "output")]),
        ({"instruction": 1, "output": "b"}, [("alpaca-instruction-not-text", "instruction")]),
        ({"instruction": "a", "input": [], "output": "b"}, [("alpaca-input-not-text", "input")]),
        ({"instruction": "a", "response": {}}, [("alpaca-output-not-text", "response")]),
        ({"instruction": "a", "output": "b", "history": "c"}, [("alpaca-history-not-a-list", "history")]),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, [("alpaca-history-not-a-pair", "history[0]")]),
        (
            {"instruction": "a", "output": "b", "history": [["q", "a"], ["q", 1]]},
            [("alpaca-history-not-a-pair", "history[1]")],
        ),
    ],
)
def test_what_is_wrong_with_an_alpaca_row_is_named(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems_of(row, "alpaca") == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, [("prompt-missing", "prompt"), ("completion-missing", "completion")]),
        ({"prompt": 1, "response": {}}, [("prompt-not-text", "prompt"), ("completion-not-text", "response")]),
        ({"prompt": "a", "completion": "b", "label": False}, [("prompt-completion-unwanted", "label")]),
    ],
)
def test_what_is_wrong_with_a_prompt_row_is_named(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems_of(row, "prompt_completion") == expected


@pytest.mark.parametrize("shape", FOREIGN)
def test_messages_beside_another_shape_are_not_overwritten(shape: str) -> None:
    row = {"messages": [], "conversations": [], "instruction": "a", "output": "b", "prompt": "a", "completion": "b"}

    assert problems_of(row, shape) == [("messages-collide", "messages")]


def test_a_row_of_a_million_problems_names_the_first() -> None:
    assert len(problems_of({"conversations": [7] * 1_000_000}, "sharegpt")) == 10
    assert len(problems_of({"instruction": "a", "output": "b", "history": [7] * 1_000_000}, "alpaca")) == 10


@settings(deadline=None)
@given(damaged_rows | st.tuples(st.sampled_from(SHAPES), any_rows))
def test_no_row_makes_a_conversion_raise(case: tuple[str, dict[str, Any]]) -> None:
    shape, row = case
    before = copy.deepcopy(row)

    recognize(row, "document")
    result = convert(row, shape)

    assert row == before
    if isinstance(result, dict):
        list(check_messages(result, RowFacts()))
    else:
        assert result
        assert all(code and message for code, _, message in result)


@settings(deadline=None)
@given(damaged_rows)
def test_each_message_of_any_converted_row_comes_from_a_value_of_the_row(case: tuple[str, dict[str, Any]]) -> None:
    shape, row = case

    result = convert(row, shape)
    if isinstance(result, list):
        return

    value_at(row, original_path(row, shape, "messages"))
    for index in range(len(result["messages"])):
        value_at(row, original_path(row, shape, f"messages[{index}]"))


@settings(deadline=None)
@given(whole_rows)
def test_a_whole_row_is_recognized_and_becomes_a_valid_one(case: tuple[str, dict[str, Any]]) -> None:
    shape, row = case

    result = converted(row, shape)

    assert recognize(row, "document") == shape
    assert recognize(result, "document") == "messages"
    assert list(check_messages(result, RowFacts())) == []
    assert result.get("id") == row.get("id")
    assert orjson.loads(orjson.dumps(result)) == result


@settings(deadline=None)
@given(whole_rows)
def test_the_text_of_each_message_stands_at_its_original_path(case: tuple[str, dict[str, Any]]) -> None:
    shape, row = case

    for index, message in enumerate(converted(row, shape)["messages"]):
        text = value_at(row, original_path(row, shape, f"messages[{index}].content"))
        role = value_at(row, original_path(row, shape, f"messages[{index}].role"))
        assert text in message["content"]
        assert shape != "sharegpt" or message["role"] in (ROLE_OF_SPEAKER.get(role), "system")


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), optional(texts))
def test_a_conversation_written_in_each_shape_converts_to_the_same_messages(
    pairs: list[tuple[str, str]], system: str | None
) -> None:
    conversation = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    speakers = {"user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[message["role"]], "value": message["content"]} for message in conversation]
    (question, answer), history = pairs[-1], [list(pair) for pair in pairs[:-1]]

    rows = [
        converted({"conversations": turns, "system": system}, "sharegpt"),
        converted({"conversations": conversation, "system": system}, "sharegpt"),
        converted({"instruction": question, "output": answer, "history": history, "system": system}, "alpaca"),
        converted({"prompt": conversation[:-1], "completion": answer, "system": system}, "prompt_completion"),
    ]

    first = [{"role": "system", "content": system}] if system else []
    assert rows == [{"messages": first + conversation}] * 4


@pytest.mark.parametrize(
    ("row", "shape", "path", "expected"),
    [
        ({"id": 1, "conversations": []}, "sharegpt", "unmask", "unmask"),
        ({"conversations": []}, "sharegpt", "messages", "conversations"),
        ({"instruction": "a", "response": "b"}, "alpaca", "messages", ""),
        ({"prompt": "a", "response": []}, "prompt_completion", "messages", "response"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "sharegpt", "messages[0]", "conversations[0]"),
        (
            {"system": "s", "conversations": [{"role": "user", "content": "a", "reasoning_content": "r"}]},
            "sharegpt",
            "messages[1].reasoning_content",
            "conversations[0].reasoning_content",
        ),
        ({"prompt": [{}, {}], "completion": "b"}, "prompt_completion", "messages[1].role", "prompt[1].role"),
        ({"instruction": "a", "context": "\0", "output": "b"}, "alpaca", "messages[0].content", "context"),
        ({"instruction": "\0", "input": "\0", "output": "b"}, "alpaca", "messages[0].content", "instruction"),
        ({"messages": []}, "messages", "messages[3].content", "messages[3].content"),
        ({"document": ""}, "documents", "document", "document"),
    ],
)
def test_a_path_of_the_converted_row_leads_back(row: dict[str, Any], shape: str, path: str, expected: str) -> None:
    assert original_path(row, shape, path) == expected
