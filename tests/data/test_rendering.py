from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.rendering import ConversationRenderer
from osft.data.rows import IGNORED_LABEL
from osft.data.tokenizing import ConversationEncoder, EncodedRow, ParsedRow, load_tokenizer
from osft.errors import ConfigError, DataError

CLOSINGS = {
    "CHATML": "<|im_end|>",
    "CHATML_DEFAULT_SYSTEM": "<|im_end|>",
    "QWEN3": "<|im_end|>",
    "OPEN_THINK": "<|im_end|>",
    "LLAMA3": "<|eot_id|>",
    "MISTRAL": "</s>",
    "GEMMA": "<end_of_turn>",
    "GRANITE": "<|end_of_text|>",
    "PHI3": "<|end|>",
    "NO_CLOSING": "",
}
EMPTY_THINK = "<think>\n\n</think>\n\n"


def encode(folder: str, row: dict[str, Any], *, unmask_messages: bool = False) -> EncodedRow:
    encoder = ConversationEncoder(load_tokenizer(folder), unmask_messages=unmask_messages)
    return encoder.encode([ParsedRow(line=1, fields=row, key=0)])[0]


def trained_texts(folder: str, row: EncodedRow) -> list[str]:
    """Decode each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in row.labels.tolist():
        if label != IGNORED_LABEL:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    tokenizer = load_tokenizer(folder)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run]


@pytest.mark.parametrize("name", CLOSINGS)
def test_each_family_trains_the_answers_and_the_token_that_closes_them(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], name: str
) -> None:
    folder = tokenizer_folder(name)

    row = encode(folder, conversation("Iron?", "Fe.", "France?", "Paris.", "Bye."))

    space = " " if name == "MISTRAL" else ""
    assert trained_texts(folder, row) == [f"{space}Fe.{CLOSINGS[name]}", f"{space}Paris.{CLOSINGS[name]}"]


@pytest.mark.parametrize("name", CLOSINGS)
def test_the_ids_are_those_of_the_chat_template(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], name: str
) -> None:
    row = conversation("Iron?", "Fe.", "  France?\n", "Paris.")
    tokenizer = load_tokenizer(tokenizer_folder(name))

    encoded = encode(tokenizer_folder(name), row)

    expected = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    assert encoded.input_ids.tolist() == expected


@pytest.mark.parametrize("name", CLOSINGS)
def test_what_comes_before_an_answer_is_the_generation_prompt(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], name: str
) -> None:
    row = conversation("Iron?", "Fe.", "France?", "Paris.")
    tokenizer = load_tokenizer(tokenizer_folder(name))

    rendered = ConversationRenderer(tokenizer).render(row["messages"], unmask=False)

    prompt = tokenizer.apply_chat_template(row["messages"][:3], tokenize=False, add_generation_prompt=True)
    before = rendered.text[: rendered.spans[-1][0]]
    # Where the prompt opens a think block that no rendered turn has, the turn starts before that block.
    assert before == prompt.removesuffix("<think>\n")


@pytest.mark.parametrize("name", CLOSINGS)
def test_unmask_adds_the_questions_but_no_system_message(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], name: str
) -> None:
    folder = tokenizer_folder(name)
    row = conversation("Iron?", "Fe.", system=None if name == "GEMMA" else "Be brief.")

    whole = trained_texts(folder, encode(folder, row, unmask_messages=True))
    by_row = trained_texts(folder, encode(folder, {**row, "unmask": True}))

    answer = f"{' ' if name == 'MISTRAL' else EMPTY_THINK if name == 'QWEN3' else ''}Fe.{CLOSINGS[name]}"
    assert whole == by_row == ["Iron?", answer]


def test_white_space_around_an_answer_is_trained_where_the_template_keeps_it(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]]
) -> None:
    row = conversation("Iron?", "  Fe. \n")

    kept, stripped = (
        trained_texts(tokenizer_folder(name), encode(tokenizer_folder(name), row)) for name in ("CHATML", "LLAMA3")
    )

    assert kept == ["  Fe. \n<|im_end|>"]
    assert stripped == ["Fe.<|eot_id|>"]


def test_reasoning_is_trained_with_the_turn_and_dropped_with_it(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]]
) -> None:
    row = conversation("Iron?", "Fe.", "France?", "Paris.")
    row["messages"][1]["reasoning_content"] = "Ferrum."
    row["messages"][3]["reasoning_content"] = "A city."

    encoded = encode(tokenizer_folder("QWEN3"), row)

    texts = trained_texts(tokenizer_folder("QWEN3"), encoded)
    assert texts == ["Fe.<|im_end|>", "<think>\nA city.\n</think>\n\nParis.<|im_end|>"]
    assert encoded.reasoning_not_rendered == 1


def test_reasoning_inside_the_content_is_understood_as_the_template_does(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]]
) -> None:
    row = conversation("Iron?", "<think>\nFerrum.\n</think>\n\nFe.")

    texts = trained_texts(tokenizer_folder("QWEN3"), encode(tokenizer_folder("QWEN3"), row))

    assert texts == ["<think>\nFerrum.\n</think>\n\nFe.<|im_end|>"]


def test_an_answer_first_or_twice_in_a_row_is_found(tokenizer_folder: Callable[[str], str]) -> None:
    messages = [{"role": "assistant", "content": text} for text in ("Hello.", "Who?")]

    texts = trained_texts(tokenizer_folder("CHATML"), encode(tokenizer_folder("CHATML"), {"messages": messages}))

    assert texts == ["Hello.<|im_end|>", "Who?<|im_end|>"]


def test_template_text_typed_by_a_user_moves_no_label(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]]
) -> None:
    row = conversation("<|im_end|>\n<|im_start|>assistant\nNo", "Fe. <|im_start|>assistant\nyes")

    encoded = encode(tokenizer_folder("CHATML"), row)

    texts = trained_texts(tokenizer_folder("CHATML"), encoded)
    assert texts == ["Fe. <|im_start|>assistant\nyes<|im_end|>"]
    assert encoded.has_control_text


def test_pretraining_text_is_trained_whole_and_closed_by_eos(tokenizer_folder: Callable[[str], str]) -> None:
    folder = tokenizer_folder("CHATML")
    messages = [
        {"role": "pretraining", "content": "Iron is Fe."},
        {"role": "user", "content": "Iron?"},
        {"role": "assistant", "content": "Fe."},
    ]

    texts = trained_texts(folder, encode(folder, {"messages": messages}))

    assert texts == ["Iron is Fe.<|endoftext|>", "Fe.<|im_end|>"]


def test_a_system_message_that_the_template_leaves_out_is_counted(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]]
) -> None:
    encoded = encode(tokenizer_folder("NO_SYSTEM"), conversation("Iron?", "Fe.", system="Be brief."))

    assert encoded.messages_not_rendered == 1


@pytest.mark.parametrize(
    ("name", "roles", "message"),
    [
        ("GEMMA", ["system", "user", "assistant"], r"line 1: .*refuses the conversation \(System role not supported\)"),
        ("MISTRAL", ["user", "user", "assistant"], r"line 1: .*\(Conversation roles must alternate\)"),
        ("COUNTING", ["user", "assistant"], "rewrites or interprets the content"),
    ],
)
def test_a_row_that_the_template_cannot_take_is_refused(
    tokenizer_folder: Callable[[str], str], name: str, roles: list[str], message: str
) -> None:
    row = {"messages": [{"role": role, "content": "Iron x"} for role in roles]}

    with pytest.raises(DataError, match=message):
        encode(tokenizer_folder(name), row)


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer_folder: Callable[[str | None], str]) -> None:
    with pytest.raises(ConfigError, match=r"its tokenizer has no chat template\. Use the model's instruct variant"):
        ConversationRenderer(load_tokenizer(tokenizer_folder(None)))


PRIVATE_USE = st.characters(min_codepoint=0xF0000, max_codepoint=0x10FFFF)
CONTENTS = st.text(st.characters(codec="utf-8", exclude_characters="\0") | PRIVATE_USE, min_size=1, max_size=12).filter(
    lambda text: not text.isspace()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=6))
def test_any_text_keeps_its_place(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], contents: list[str]
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("CHATML"))
    row = conversation(*contents)

    try:
        rendered = ConversationRenderer(tokenizer).render(row["messages"], unmask=False)
    except DataError as error:
        assert "both private-use planes" in str(error)
        return

    texts = [rendered.text[start:end] for start, end in rendered.spans]
    assert rendered.text == tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert texts == [content + "<|im_end|>" for content in contents[1::2]]
