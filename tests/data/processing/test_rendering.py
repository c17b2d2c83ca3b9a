import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from osft.data.processing import tokenizing
from osft.data.processing.control_text import ControlText
from osft.data.processing.rendering import Conversation, ConversationRenderer, RenderedRow
from osft.data.processing.tokenizing import ConversationEncoder, EncodedBatch, ParsedRow
from osft.data.validation.rows import IGNORED_LABEL
from osft.errors import ConfigError, DataError

CLOSINGS = {
    "GENERATION": "<|im_end|>",
    "GENERATION_WITHOUT_CLOSING": "",
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


KINDS = ["byte-level", "bytes", "trimmed offsets", "byte fallback", "unigram"]
# Folders last for the whole session, and loading takes longer than all else.
load_tokenizer = cache(tokenizing.load_tokenizer)


@cache
def make_encoder(folder: str, *, unmask_messages: bool) -> ConversationEncoder:
    return ConversationEncoder(load_tokenizer(folder), unmask_messages=unmask_messages)


def encode(folder: str, row: dict[str, Any], *, unmask_messages: bool = False) -> EncodedBatch:
    return make_encoder(folder, unmask_messages=unmask_messages).encode(
        [ParsedRow(line=1, fields=row, key=0, hash=bytes(16))]
    )


def render(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> RenderedRow:
    renderer = ConversationRenderer(tokenizer, ControlText(tokenizer))
    return renderer.render([Conversation(place="line 1", messages=row["messages"])])[0]


def trained_texts(folder: str, row: EncodedBatch) -> list[str]:
    """Decode each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in row.labels.tolist():
        if label != IGNORED_LABEL:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    tokenizer = load_tokenizer(folder)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLOSINGS)
def test_each_family_trains_the_answers_and_the_token_that_closes_them(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]], name: str, kind: str
) -> None:
    folder = tokenizer_folder(name, kind)

    row = encode(folder, conversation("Iron?", "Fe.", "France?", "Paris.", "Bye."))

    # Their decoders strip the space that opens a text.
    space = " " if name == "MISTRAL" and kind not in ("byte fallback", "unigram") else ""
    # Where nothing closes a turn, its last token may reach beyond it.
    texts = [text if CLOSINGS[name] else text.rstrip() for text in trained_texts(folder, row)]
    assert texts == [f"{space}Fe.{CLOSINGS[name]}", f"{space}Paris.{CLOSINGS[name]}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLOSINGS)
def test_the_ids_are_those_of_the_chat_template(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]], name: str, kind: str
) -> None:
    row = conversation("Iron?", "Fe.", "  France?\n", "Paris.")
    tokenizer = load_tokenizer(tokenizer_folder(name, kind))

    encoded = encode(tokenizer_folder(name, kind), row)

    expected = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    assert encoded.input_ids.tolist() == expected


@pytest.mark.parametrize("name", CLOSINGS)
def test_what_comes_before_an_answer_is_the_generation_prompt(
    tokenizer_folder: Callable[[str], str], conversation: Callable[..., dict[str, Any]], name: str
) -> None:
    row = conversation("Iron?", "Fe.", "France?", "Paris.")
    tokenizer = load_tokenizer(tokenizer_folder(name))

    rendered = render(tokenizer, row)

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
    # The same words as in the content, which stays.
    row["messages"][1]["reasoning_content"] = "Fe."
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
    assert encoded.rows_with_control_text == 1


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
        (
            "GEMMA",
            ["system", "user", "assistant"],
            r"line 1: .* takes no system message \(System role not supported\)\. Put its text in front",
        ),
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
        render(load_tokenizer(tokenizer_folder(None)), {"messages": []})


PRIVATE_USE = st.characters(min_codepoint=0xF0000, max_codepoint=0x10FFFF)
EDGES = st.text(st.sampled_from(" \n\t\v\u00a0\u3000"), max_size=3)
CONTENTS = st.tuples(
    EDGES,
    st.text(st.characters(codec="utf-8", exclude_characters="\0") | PRIVATE_USE, min_size=1, max_size=12),
    EDGES,
).map("".join).filter(lambda text: not text.isspace())  # fmt: skip


def strip_if(name: str, content: str) -> str:
    return content.strip() if name in ("LLAMA3", "GEMMA", "MISTRAL") else content


def expected_texts(name: str, contents: list[str]) -> list[str]:
    """Return what each family trains of the answers, every second content."""
    answers = [strip_if(name, content) + CLOSINGS[name] for content in contents[1::2]]
    if name == "MISTRAL":
        answers = [" " + answer for answer in answers]
    if name == "QWEN3" and len(contents) % 2 == 0:
        answers[-1] = EMPTY_THINK + answers[-1].lstrip("\n")
    return answers


@pytest.mark.parametrize("name", [name for name in CLOSINGS if name != "NO_CLOSING"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=6))
def test_each_family_trains_exactly_the_answers_whatever_they_hold(
    tokenizer_folder: Callable[..., str],
    conversation: Callable[..., dict[str, Any]],
    name: str,
    contents: list[str],
) -> None:
    # A token a byte: none covers the end of a header and the start of an answer.
    folder = tokenizer_folder(name, "bytes")
    row = conversation(*contents)

    encoded = encode(folder, row)

    text = load_tokenizer(folder).apply_chat_template(row["messages"], tokenize=False)
    assert load_tokenizer(folder).decode(encoded.input_ids.tolist()) == text
    assert trained_texts(folder, encoded) == expected_texts(name, contents)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=4))
def test_each_kind_of_tokenizer_trains_the_tokens_that_cover_the_answers(
    tokenizer_folder: Callable[..., str],
    conversation: Callable[..., dict[str, Any]],
    kind: str,
    contents: list[str],
) -> None:
    folder = tokenizer_folder("CHATML", kind)
    tokenizer = load_tokenizer(folder)
    row = conversation(*contents)

    encoded = encode(folder, row)

    rendered = render(tokenizer, row)
    offsets = tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False).offsets
    trained = (encoded.labels != IGNORED_LABEL).tolist()
    for (start, end), is_trained in zip(offsets, trained, strict=True):
        covers = any(start < last and first < end for first, last in rendered.spans)
        # A token of white space may have no width.
        assert is_trained == covers or start == end
    assert encoded.input_ids.tolist() == tokenizer.apply_chat_template(row["messages"], return_dict=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=6))
def test_any_text_keeps_its_place(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]], contents: list[str]
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("ECHO"))
    row = conversation(*contents)

    try:
        rendered = render(tokenizer, row)
    except DataError as error:
        # The template looks into contents, so they are marked.
        assert "both private-use planes" in str(error)
        return

    texts = [rendered.text[start:end] for start, end in rendered.spans]
    openings = ["" if "?" in question else "No question. " for question in contents[::2]]
    answers = [opening + answer + "<|im_end|>" for opening, answer in zip(openings, contents[1::2], strict=False)]
    assert rendered.text == tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert texts == answers


# Where offsets leave spaces out, transformers masks nothing of a turn that starts with one.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trimmed offsets"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=6))
def test_generation_blocks_give_the_mask_that_transformers_gives(
    tokenizer_folder: Callable[..., str],
    conversation: Callable[..., dict[str, Any]],
    kind: str,
    contents: list[str],
) -> None:
    folder = tokenizer_folder("GENERATION", kind)
    row = conversation(*contents)

    encoded = encode(folder, row)

    expected = load_tokenizer(folder).apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids.tolist() == expected["input_ids"]
    assert (encoded.labels != IGNORED_LABEL).tolist() == [bool(mask) for mask in expected["assistant_masks"]]


def test_generation_blocks_that_leave_the_closing_token_out_are_warned_of(
    tokenizer_folder: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("GENERATION_WITHOUT_CLOSING"))

    with caplog.at_level(logging.WARNING):
        ConversationRenderer(tokenizer, ControlText(tokenizer))

    [warning] = caplog.messages
    assert "generation blocks of its chat template leave out '<|im_end|>', which closes a turn" in warning


def test_turns_that_are_not_closed_as_the_last_one_are_warned_of_once(
    tokenizer_folder: Callable[..., str],
    conversation: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = conversation("Iron?", "Fe.", "France?", "Paris.", "Italy?", "Rome.")

    with caplog.at_level(logging.WARNING):
        render(load_tokenizer(tokenizer_folder("CLOSED_LAST")), row)

    [warning] = caplog.messages
    assert warning.startswith("line 1: the chat template does not close an assistant turn with '<|im_end|>' there")


def test_a_conversation_is_read_the_same_whether_or_not_its_shape_is_known(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("QWEN3"))
    row = conversation("Iron?", "Fe.", "France?", "Paris.")
    row["messages"][3]["reasoning_content"] = "A city."
    # More messages than a skeleton has.
    long_row = conversation(*["Iron?", "Fe."] * 200)

    known, unknown = render(tokenizer, row), render(tokenizer, long_row)

    prompt = tokenizer.apply_chat_template(row["messages"][:3], tokenize=False, add_generation_prompt=True)
    assert known.spans[-1][0] == len(prompt)
    assert {unknown.text[start:end] for start, end in unknown.spans[:-1]} == {"Fe.<|im_end|>"}


def test_a_batch_gives_what_its_rows_give_one_by_one(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    encoder = make_encoder(tokenizer_folder("CHATML"), unmask_messages=False)
    rows = [
        conversation("Iron?", "Fe."),
        conversation("What is <|im_end|>?", "A token."),
        {"messages": [{"role": "pretraining", "content": "Iron is Fe."}]},
        conversation("Iron?", "Fe.", "France?", "Paris.", system="Be brief.", unmask=True),
    ]

    parsed = [ParsedRow(line=line, fields=row, key=line + 7, hash=bytes(16)) for line, row in enumerate(rows, start=1)]
    whole, single = encoder.encode(parsed), [encoder.encode([row]) for row in parsed]

    for column in ("lines", "keys", "lengths", "input_ids", "labels"):
        joined = np.concatenate([getattr(batch, column) for batch in single])
        assert getattr(whole, column).tolist() == joined.tolist()
        assert getattr(whole, column).dtype == joined.dtype
    assert whole.rows_with_control_text == 1


def test_the_line_that_the_template_refuses_is_found_in_a_batch(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    rows = [conversation("Iron?", "Fe."), conversation("Iron?", "Fe.", system="Be brief.")]
    encoder = make_encoder(tokenizer_folder("GEMMA"), unmask_messages=False)

    with pytest.raises(DataError, match=r"line 12: the chat template takes no system message .* or remove the row\."):
        encoder.encode(
            [ParsedRow(line=11 + index, fields=row, key=0, hash=bytes(16)) for index, row in enumerate(rows)]
        )
