"""What the benchmark of the data steps measures with."""

import gzip
from pathlib import Path

import orjson
import pytest
from transformers import AutoTokenizer

from benchmarks.data.rows import (
    ROWS_PER_BLOCK,
    BlockMaker,
    make_blocks,
    make_row,
    make_words,
    train_tokenizer,
    write_conversations,
    write_download,
    write_texts,
)
from osft.data.validation.validate import validate_dataset


@pytest.fixture(scope="module")
def block() -> bytes:
    """The first block of conversations."""
    return BlockMaker(make_words())(0)


def test_a_block_is_the_same_each_time(block: bytes) -> None:
    again = BlockMaker(make_words())(0)

    assert again == block


def test_blocks_differ(block: bytes) -> None:
    second = BlockMaker(make_words())(1)

    assert not set(second.splitlines()) & set(block.splitlines())


def test_conversations_have_about_750_bytes_and_3_to_5_messages(block: bytes) -> None:
    rows = [orjson.loads(line) for line in block.splitlines()]

    assert len(rows) == len(set(block.splitlines())) == ROWS_PER_BLOCK
    assert 720 < len(block) / len(rows) < 780
    assert {len(row["messages"]) for row in rows} == {3, 4, 5}


def test_words_follow_zipfs_law(block: bytes) -> None:
    first, second, tenth = (block.count(b" " + word.encode() + b" ") for word in [make_words()[i] for i in (0, 1, 9)])

    assert 1.7 < first / second < 2.3
    assert 8 < first / tenth < 12.5


def test_a_smaller_file_is_the_beginning_of_a_larger_one(block: bytes) -> None:
    small = b"".join(make_blocks(10))
    large = b"".join(make_blocks(ROWS_PER_BLOCK + 10))

    assert len(small.splitlines()) == 10
    assert len(large.splitlines()) == ROWS_PER_BLOCK + 10
    assert large.startswith(block)
    assert block.startswith(small)


def test_an_odd_conversation_begins_with_a_system_message_and_all_words_are_said() -> None:
    row = make_row([f"{number} " for number in range(20)], 5)

    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert " ".join(message["content"] for message in row["messages"]).split() == [str(number) for number in range(20)]


def test_the_files_hold_valid_rows_and_what_the_template_makes_of_them(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(iter(["some words"])).save_pretrained(tokenizer)

    rows = write_conversations(tmp_path, 100)
    texts = write_texts(tmp_path, rows, tokenizer).read_bytes().splitlines()

    assert validate_dataset(rows, tmp_path / "valid").rows_valid == 100
    first = orjson.loads(rows.read_bytes().splitlines()[0])["messages"]
    expected = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(first, tokenize=False)
    assert len(texts) == 100
    assert orjson.loads(texts[0]) == expected


def test_the_downloads_hold_the_same_whole_lines(tmp_path: Path) -> None:
    rows = write_conversations(tmp_path, 100)

    plain, packed = write_download(tmp_path, rows, 10_000)

    assert 9_000 < plain.stat().st_size <= 10_000
    assert rows.read_bytes().startswith(plain.read_bytes())
    assert plain.read_bytes().endswith(b"\n")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    path = write_conversations(tmp_path, 5)
    path.write_bytes(b"kept\n")

    assert write_conversations(tmp_path, 5).read_bytes() == b"kept\n"
