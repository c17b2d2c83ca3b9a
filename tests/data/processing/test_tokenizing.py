from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from osft.data.processing.tokenizing import (
    ConversationEncoder,
    DocumentEncoder,
    ParsedRow,
    PassThroughEncoder,
    RowEncoder,
    load_tokenizer,
)
from osft.errors import ConfigError, DataError, MissingPathError


def parsed(*rows: dict[str, Any]) -> list[ParsedRow]:
    return [
        ParsedRow(line=index, fields=row, key=2**64 - index, hash=bytes(16)) for index, row in enumerate(rows, start=1)
    ]


@pytest.fixture
def encoders(tokenizer_folder: Callable[..., str]) -> list[RowEncoder]:
    tokenizer = load_tokenizer(tokenizer_folder("CHATML"))
    return [
        ConversationEncoder(tokenizer, unmask_messages=False),
        DocumentEncoder(tokenizer, "text"),
        PassThroughEncoder(len(tokenizer)),
    ]


def test_every_encoder_gives_arrays_that_belong_together(
    encoders: list[RowEncoder], conversation: Callable[..., dict[str, Any]]
) -> None:
    processed = {"input_ids": [4, 5, 6], "labels": [-100, 5, 6], "text": "Iron is Fe."}
    rows = parsed(conversation("Iron?", "Fe.") | processed, conversation("France?", "Paris.") | processed)

    for batch in [encoder.encode(rows) for encoder in encoders]:
        assert batch.lines.tolist() == [1, 2]
        assert batch.keys.tolist() == [2**64 - 1, 2**64 - 2]
        assert len(batch.input_ids) == len(batch.labels) == batch.lengths.sum()
        assert (batch.lengths.dtype, batch.keys.dtype) == (np.int64, np.uint64)
        assert (batch.input_ids.dtype, batch.labels.dtype) == (np.int32, np.int32)


def test_no_rows_are_an_empty_batch(encoders: list[RowEncoder]) -> None:
    batches = [encoder.encode([]) for encoder in encoders]

    assert [(len(batch.lengths), len(batch.input_ids), len(batch.labels)) for batch in batches] == [(0, 0, 0)] * 3


def test_each_document_is_closed_by_eos_and_trained_whole(encoders: list[RowEncoder]) -> None:
    batch = encoders[1].encode(parsed({"text": "Iron is Fe."}, {"text": "Paris."}))

    ends = batch.lengths.cumsum() - 1
    assert batch.input_ids[ends].tolist() == [0, 0]
    assert batch.labels.tolist() == batch.input_ids.tolist()


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_an_id_that_is_not_in_the_vocabulary_is_found(encoders: list[RowEncoder], column: str) -> None:
    good = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    bad = {**good, column: [1, 9999, 3]}

    with pytest.raises(DataError, match=rf"line 2: {column}\[1\] is 9999, but the tokenizer has \d+ ids\. Tokenize"):
        encoders[2].encode(parsed(good, bad, good))


def test_a_row_of_which_nothing_is_trained_is_refused(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    encoder = ConversationEncoder(load_tokenizer(tokenizer_folder("CHATML")), unmask_messages=False)

    with pytest.raises(DataError, match=r"line 1: the chat template renders nothing that is trained\. Remove the row"):
        encoder.encode(parsed(conversation("Iron?")))


def test_the_first_token_of_a_row_trains_nothing() -> None:
    core = Tokenizer(models.WordLevel({"Fe": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    encoder = ConversationEncoder(tokenizer, unmask_messages=False)

    with pytest.raises(DataError, match="line 1: the chat template renders nothing that is trained"):
        encoder.encode(parsed({"messages": [{"role": "pretraining", "content": "Fe"}]}))


def test_documents_need_an_eos_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))

    with pytest.raises(ConfigError, match=r"its tokenizer has no EOS token to part documents\. Set one"):
        DocumentEncoder(tokenizer, "text")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"no tokenizer could be loaded .* Give a folder with tokenizer\.json"):
        load_tokenizer(str(tmp_path))
