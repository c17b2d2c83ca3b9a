import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from osft.data.processing.control_text import PRIVATE_PLANES, ControlText, free_plane
from osft.data.processing.tokenizing import (
    ConversationEncoder,
    DocumentEncoder,
    EncodedBatch,
    ParsedRow,
    load_tokenizer,
)
from osft.data.validation.rows import IGNORED_LABEL
from osft.errors import DataError

KINDS = ["byte-level", "bytes", "trimmed offsets", "byte fallback", "unigram"]
TYPED = ["<|im_end|>", "<|im_start|>assistant\n", "</s>", "<|endoftext|>", "<|im_<|im_end|>end|>", "<unk>", "<think>"]
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Co"])
CONTENTS = st.lists(
    st.sampled_from(TYPED) | st.text(CHARACTERS, min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(lambda pieces: "x" + "".join(pieces))


# Folders last for the whole session, and loading takes longer than all else.
load = cache(load_tokenizer)


@cache
def make_encoder(folder: str) -> ConversationEncoder:
    return ConversationEncoder(load(folder), unmask_messages=False)


def encode(folder: str, *contents: str) -> EncodedBatch:
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]
    return make_encoder(folder).encode([ParsedRow(line=7, fields={"messages": messages}, key=0, hash=bytes(16))])


def special_ids(folder: str, ids: list[int]) -> list[int]:
    tokenizer = load(folder)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [token_id for token_id in ids if token_id in special]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=CONTENTS, answer=CONTENTS)
def test_typed_control_tokens_stay_text_and_those_of_the_template_stay_tokens(
    tokenizer_folder: Callable[..., str], kind: str, question: str, answer: str
) -> None:
    folder = tokenizer_folder("CHATML", kind)

    batch = encode(folder, question, answer)

    ids = batch.input_ids.tolist()
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert special_ids(folder, ids) == special_ids(folder, encode(folder, "Iron?", "Fe.").input_ids.tolist())
    assert without_spaces(load(folder).decode(ids)) == without_spaces(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_trained_with_what_it_spells_out(tokenizer_folder: Callable[..., str], kind: str) -> None:
    folder = tokenizer_folder("CHATML", kind)

    batch = encode(folder, "What is </s>?", "A token, as <|im_end|> is one.")

    trained = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert load(folder).decode(trained) == "A token, as <|im_end|> is one.<|im_end|>"
    assert batch.rows_with_control_text == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_not_special_is_still_one(tokenizer_folder: Callable[..., str], kind: str) -> None:
    folder = tokenizer_folder("CHATML", kind)
    think = load(folder).convert_tokens_to_ids("<think>")

    plain, typed = encode(folder, "Iron?", "<think>Fe"), encode(folder, "Iron </s>?", "<think>Fe")

    assert plain.input_ids.tolist().count(think) == typed.input_ids.tolist().count(think) == 1
    assert (plain.rows_with_control_text, typed.rows_with_control_text) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["CHATML", "MISTRAL", "LLAMA3", "QWEN3", "PHI3"])
def test_the_changed_tokenizer_encodes_all_else_as_the_tokenizer_does(
    tokenizer_folder: Callable[..., str], name: str, kind: str
) -> None:
    tokenizer = load(tokenizer_folder(name, kind))
    control_text = ControlText(tokenizer)
    messages = [{"role": "user", "content": " Iron\n 鉄 <think>?"}, {"role": "assistant", "content": "Fe."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)

    ids, encoding = control_text.encode(control_text.swap(text, PRIVATE_PLANES[0]), PRIVATE_PLANES[0])

    assert ids == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert len(encoding) == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_and_pretraining_text_keep_what_they_spell_out(
    tokenizer_folder: Callable[..., str], kind: str
) -> None:
    folder = tokenizer_folder("CHATML", kind)
    tokenizer = load(folder)
    text = "Each turn ends with <|im_end|>, each text with <|endoftext|>."
    message = {"role": "pretraining", "content": text}

    document = DocumentEncoder(tokenizer, "text").encode(
        [ParsedRow(line=1, fields={"text": text}, key=0, hash=bytes(16))]
    )
    pretraining = ConversationEncoder(tokenizer, unmask_messages=False).encode(
        [ParsedRow(line=1, fields={"messages": [message]}, key=0, hash=bytes(16))]
    )

    assert document.input_ids.tolist() == pretraining.input_ids.tolist() == pretraining.labels.tolist()
    assert special_ids(folder, document.input_ids.tolist()) == [tokenizer.eos_token_id]
    assert tokenizer.decode(document.input_ids[:-1].tolist()) == text
    assert (document.rows_with_control_text, pretraining.rows_with_control_text) == (1, 1)


def test_private_use_characters_beside_control_text_are_kept(tokenizer_folder: Callable[..., str]) -> None:
    folder = tokenizer_folder("CHATML")
    question = f"Is {chr(0xF8002)} the same as <|im_end|>?"

    batch = encode(folder, question, "No.")

    assert question in load(folder).decode(batch.input_ids.tolist())


def test_a_row_with_both_private_planes_and_control_text_is_refused(tokenizer_folder: Callable[..., str]) -> None:
    question = f"<|im_end|>{chr(0xF0000)}{chr(0x100000)}"

    with pytest.raises(DataError, match=r"line 7: the row holds characters of both private-use planes .*Remove them"):
        encode(tokenizer_folder("CHATML"), question, "No.")


def test_the_first_plane_without_a_character_of_the_row_is_free() -> None:
    planes = [free_plane([text]) for text in ("plain", "", chr(0xF1234), chr(0x100000), chr(0x1F600))]

    assert planes == [0xF0000, 0xF0000, 0x100000, 0xF0000, 0xF0000]


@given(tokens=st.sets(st.text("<|ab.", min_size=1, max_size=4), min_size=1, max_size=8), text=st.text("<|ab.x"))
def test_the_longest_token_that_a_text_spells_out_is_found(tokens: set[str], text: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_letters())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(tokens)})
    control_text = ControlText(tokenizer)

    escaped = control_text.escape(text, PRIVATE_PLANES[0])

    longest_first = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    assert re.sub("[^<|ab.x]", "#", escaped) == re.sub(longest_first, "#", text)
    assert control_text.occurs_in(text) == (escaped != text)
    assert control_text.swap(escaped, PRIVATE_PLANES[0]) == text


def make_letters(**model: Any) -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(["<unk>", *"abcdef<>/s() "])}
    return Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", **model))


def test_what_no_token_can_spell_is_the_unknown_token_as_before() -> None:
    core = make_letters()
    core.add_special_tokens(["<unk>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")

    ids, _ = ControlText(tokenizer).encode("a</s>鉄", PRIVATE_PLANES[0])

    assert ids == core.encode("a").ids + [core.token_to_id(piece) for piece in "</s>"] + [0]


def test_a_tokenizer_that_makes_a_special_token_of_other_text_is_refused() -> None:
    core = make_letters()
    core.normalizer = normalizers.Replace("(s)", chr(PRIVATE_PLANES[0] + 0x8000))
    core.add_special_tokens([AddedToken("</s>", special=True, normalized=True)])
    control_text = ControlText(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))

    with pytest.raises(DataError, match=r"the tokenizer takes the text '.*' for a special token\. Remove it"):
        control_text.encode("a(s)</s>", PRIVATE_PLANES[0])


def test_a_tokenizer_that_has_private_use_tokens_is_refused() -> None:
    core = make_letters()
    core.add_special_tokens(["</s>"])
    core.add_tokens([chr(PRIVATE_PLANES[0] + 0x8000)])
    control_text = ControlText(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))

    with pytest.raises(DataError, match=r"the tokenizer cannot be changed .* private-use token U\+F8000\)\. Remove"):
        control_text.encode("a</s>", PRIVATE_PLANES[0])


def without_spaces(text: str) -> str:
    """Leave out what some tokenizers add or strip around special tokens as they decode."""
    return text.replace(" ", "")


@pytest.mark.parametrize(("typed", "normalizer"), [("\uff1c|im_end|\uff1e", "NFKC"), ("<|IM_END|>", "Lowercase")])
def test_what_the_normalizer_turns_into_a_control_token_stays_text(
    tmp_path: Path, tokenizer_folder: Callable[..., str], typed: str, normalizer: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("CHATML"))
    spec = orjson.loads(tokenizer.backend_tokenizer.to_str())
    spec["normalizer"] = {"type": normalizer}
    for token in spec["added_tokens"]:
        token["normalized"] = True
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(orjson.dumps(spec).decode()), eos_token="<|endoftext|>"
    )
    made.chat_template = tokenizer.chat_template
    made.save_pretrained(tmp_path)

    batch = encode(str(tmp_path), f"a {typed} b", "Fe.")

    closing = load(str(tmp_path)).convert_tokens_to_ids("<|im_end|>")
    assert batch.input_ids.tolist().count(closing) == 2
    assert batch.rows_with_control_text == 1
