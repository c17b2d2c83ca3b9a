"""The probe's file as documents of token ids."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from osft.errors import DataError, MissingPathError
from osft.evaluation.probe import read_probe, text

Kit = Any


@pytest.fixture(scope="module")
def tokenizer(kit: Kit) -> PreTrainedTokenizerFast:
    return kit.byte_tokenizer()


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(documents: tuple[tuple[int, ...], ...], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(list(ids)) for ids in documents]


@pytest.mark.parametrize(
    "content",
    [
        "one\ntwo\n\nthree\n \t\n\nfour",
        "\n\none\ntwo\n\nthree\n\nfour\n\n",
        "one\r\ntwo\r\n\r\nthree\r\n\r\nfour\r\n",
        "\ufeffone\ntwo\n\nthree\n\nfour",
    ],
)
def test_plain_text_is_parted_at_blank_lines(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: str) -> None:
    path = write(tmp_path, "probe.txt", content)

    documents = read_probe(path, tokenizer)

    assert texts(documents, tokenizer) == ["one\ntwo", "three", "four"]


def test_rows_are_texts_and_conversations_in_the_models_own_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    rows = [json.dumps({"text": "a text\n\nof two paragraphs"}), "", json.dumps({"messages": messages})]
    path = write(tmp_path, "probe.jsonl", "\n".join(rows))

    documents = read_probe(path, tokenizer)

    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert texts(documents, tokenizer) == ["a text\n\nof two paragraphs", rendered]
    assert documents[1][0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_text_begins_as_the_tokenizer_begins_texts_and_a_conversation_as_its_template_does(
    tmp_path: Path, kit: Kit
) -> None:
    tokenizer = kit.byte_tokenizer()
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)]
    )
    rows = [{"text": "a text"}, {"messages": [{"role": "user", "content": "hello"}]}]
    path = write(tmp_path, "probe.jsonl", "\n".join(map(json.dumps, rows)))

    documents = read_probe(path, tokenizer)

    assert [ids[0] == first for ids in documents] == [True, False]


def test_what_is_too_much_is_left_out_and_not_even_read(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(text, "MAX_PROBE_TOKENS", 10)
    path = write(tmp_path, "probe.txt", b"123456\n\n12345678\n\n" + b"\xff\n\n")

    with caplog.at_level("INFO"):
        documents = read_probe(path, tokenizer)

    assert [len(ids) for ids in documents] == [6, 4]
    assert "its first 10 tokens are measured, the rest is left out" in caplog.text


def test_a_probe_that_just_fits_is_taken_whole(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(text, "MAX_PROBE_TOKENS", 14)
    path = write(tmp_path, "probe.txt", "123456\n\n12345678\n")

    with caplog.at_level("INFO"):
        documents = read_probe(path, tokenizer)

    assert [len(ids) for ids in documents] == [6, 8]
    assert "left out" not in caplog.text


def test_of_a_document_without_end_no_more_is_held_than_is_measured(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT_CHARACTERS", 20)
    path = write(tmp_path, "probe.txt", "line\n" * 1000)

    documents = read_probe(path, tokenizer)

    assert texts(documents, tokenizer) == ["line\nline\nline\nline"]


def test_documents_that_predict_nothing_are_passed_over(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, "probe.txt", "a\n\nbc\n\nd")

    documents = read_probe(path, tokenizer)

    assert texts(documents, tokenizer) == ["bc"]


@pytest.mark.parametrize("content", ["", "\n\n \n", "a\n\nb"])
def test_a_probe_that_predicts_nothing_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: str
) -> None:
    path = write(tmp_path, "probe.txt", content)

    with pytest.raises(DataError, match=r"probe\.txt: no document of the probe has two tokens.*Give more text"):
        read_probe(path, tokenizer)


def test_a_probe_that_is_not_there_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(MissingPathError, match=r"prose\.txt: the probe is not there.*Give a text file"):
        read_probe(tmp_path / "prose.txt", tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("probe.parquet", b"PAR1", r"ends in '\.parquet'\. Give plain text"),
        ("probe.txt", b"good\nb\xe9d\n", r"probe\.txt, line 2: the probe is not UTF-8 there\. Save it as UTF-8"),
        (
            "probe.jsonl",
            b'{"text": "good"}\n{"text": \n',
            r"probe\.jsonl, line 2: the row is not JSON .*one JSON object",
        ),
        ("probe.jsonl", b'{"prompt": "a"}\n', r"line 1: the row has neither 'text', a string, nor 'messages'.*Give it"),
        ("probe.jsonl", b'["a text"]\n', r"line 1: the row has neither 'text'"),
        (
            "probe.jsonl",
            b'{"messages": ["hello"]}\n',
            r"line 1: the chat template refuses the messages \(.*Check their",
        ),
    ],
)
def test_what_is_no_probe_is_refused_with_its_place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)

    with pytest.raises(DataError, match=message):
        read_probe(path, tokenizer)


def test_messages_need_a_template(tmp_path: Path, kit: Kit) -> None:
    tokenizer = kit.byte_tokenizer()
    tokenizer.chat_template = None
    path = write(tmp_path, "probe.jsonl", '{"messages": [{"role": "user", "content": "hello"}]}')

    with pytest.raises(DataError, match=r"line 1: 'messages', but the base model has no chat template"):
        read_probe(path, tokenizer)
