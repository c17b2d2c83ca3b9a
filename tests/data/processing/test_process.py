import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osft.content_cache import ContentCache
from osft.data.increments.row_hash import hash_messages_row
from osft.data.processing import encoding
from osft.data.processing import process as processing
from osft.data.processing.process import process_dataset
from osft.data.processing.report import ProcessingConfig, ProcessingReport
from osft.data.processing.tokenizing import load_tokenizer
from osft.errors import ConfigError, DataError, MissingPathError

Rows = list[dict[str, Any]]


def process(source: Path, output: Path, **options: Any) -> tuple[ProcessingReport, Rows, Rows]:
    """Process and read both files back."""
    report = process_dataset(source, output, ProcessingConfig(**{"max_seq_len": 64, **options}))
    train, holdout = (pq.read_table(output / f"{name}.parquet").to_pylist() for name in ("train", "holdout"))
    return report, train, holdout


@pytest.fixture
def model(tokenizer_folder: Callable[[str], str]) -> str:
    return tokenizer_folder("CHATML")


def test_rows_become_parquet_with_ids_labels_and_their_line(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(*[conversation(f"Question {index}?", "Fe.") for index in range(20)])

    report, train, holdout = process(source, tmp_path / "out", model=model, holdout_fraction=0.3)

    schema = pq.read_schema(tmp_path / "out/train.parquet")
    assert schema.field("input_ids").type == schema.field("labels").type == pa.list_(pa.int32())
    assert schema.field("row").type == pa.int64()
    assert all(row["length"] == len(row["input_ids"]) for row in train + holdout)
    assert all(row["trained_tokens"] == sum(label != -100 for label in row["labels"][1:]) for row in train + holdout)
    assert sorted(row["row"] for row in train + holdout) == list(range(1, 21))
    assert all(
        label in (-100, token) for row in train for token, label in zip(row["input_ids"], row["labels"], strict=True)
    )
    assert report.rows_in == report.rows_train + report.rows_holdout == 20
    assert report.train.tokens == sum(len(row["input_ids"]) for row in train)
    assert report.train.trained_tokens == sum(row["trained_tokens"] for row in train)
    assert orjson.loads((tmp_path / "out/processing.json").read_bytes())["rows_holdout"] == len(holdout)


def test_batches_change_nothing(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_rows(*[conversation(f"Question {index}?", "Fe.") for index in range(10)])
    _, *whole = process(source, tmp_path / "whole", model=model)
    monkeypatch.setattr(encoding, "BATCH_ROWS", 3)

    _, *batched = process(source, tmp_path / "batched", model=model)

    assert whole == batched


def test_a_row_keeps_its_side_when_the_data_grows(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    rows = [conversation(f"Question {index}?", "Fe.") for index in range(60)]
    _, _, few = process(write_rows(*rows[:40]), tmp_path / "few", model=model, holdout_fraction=0.25)

    _, _, many = process(write_rows(*rows), tmp_path / "many", model=model, holdout_fraction=0.25)

    assert [row["row"] for row in few] == [row["row"] for row in many if row["row"] <= 40]
    assert 5 <= len(many) <= 25


def test_duplicates_fall_on_the_same_side_whatever_their_id(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    rows = [conversation(f"Question {index % 10}?", "Fe.", id=index) for index in range(40)]

    _, train, holdout = process(write_rows(*rows), tmp_path / "out", model=model, holdout_fraction=0.4)

    train_ids, holdout_ids = ({tuple(row["input_ids"]) for row in side} for side in (train, holdout))
    assert train_ids.isdisjoint(holdout_ids)
    assert len(train) + len(holdout) == 40


@pytest.mark.parametrize("fraction", [0.001, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_two_distinct_rows_give_one_on_each_side(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    fraction: float,
    seed: int,
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b"), conversation("Too long?", "x" * 500))

    report, train, holdout = process(source, tmp_path / "out", model=model, holdout_fraction=fraction, seed=seed)

    assert (len(train), len(holdout), report.rows_dropped_too_long) == (1, 1, 1)


def test_one_distinct_row_is_trained(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("A?", "a"))

    _, train, holdout = process(source, tmp_path / "out", model=model, holdout_fraction=0.999)

    assert (len(train), len(holdout)) == (2, 0)


def test_no_holdout_leaves_an_empty_file_with_the_schema(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b"))

    _, train, holdout = process(source, tmp_path / "out", model=model, holdout_fraction=0.0)

    train_names = pq.read_schema(tmp_path / "out/train.parquet").names
    assert (len(train), len(holdout)) == (2, 0)
    assert pq.read_schema(tmp_path / "out/holdout.parquet").names == train_names


def test_rows_too_long_are_dropped_and_counted(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b" * 100))

    report, train, _ = process(source, tmp_path / "out", model=model, holdout_fraction=0.0)

    assert [row["row"] for row in train] == [1]
    assert (report.rows_in, report.rows_dropped_too_long, report.too_long_lines) == (2, 1, (2,))
    assert report.lengths.max > 64


def test_rows_too_long_are_truncated_if_something_trained_is_left(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("B?", "b" * 100), conversation("q" * 100, "c"))

    report, train, _ = process(source, tmp_path / "out", model=model, holdout_fraction=0.0, on_too_long="truncate")

    assert [len(row["input_ids"]) for row in train] == [64]
    assert (report.rows_truncated, report.rows_dropped_too_long) == (1, 1)
    rows = [hash_messages_row(orjson.loads(line)) for line in source.read_bytes().splitlines()]
    hashes = [(tmp_path / "out" / name).read_bytes() for name in ("taken_rows.bin", "too_long_rows.bin")]
    assert hashes == rows


def test_rows_too_long_fail_if_asked(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b" * 100))

    with pytest.raises(DataError, match=r"line 2: the row has \d+ tokens, more than max_seq_len 64"):
        process(source, tmp_path / "out", model=model, on_too_long="fail")


def test_nothing_left_to_train_on_fails_and_leaves_no_file(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(*[conversation("B?", "b" * length) for length in (100, 110, 120, 130, 140, 150)])

    with pytest.raises(
        DataError,
        match=r"no row is left to train on \(6 rows, 6 of them longer than 64 tokens\)\. "
        r"Too long: line 1, 2, 3, 4, 5, …; the longest has 1\d\d tokens\. "
        r"Raise max_seq_len, choose on_too_long truncate, or give more rows\.",
    ):
        process(source, tmp_path / "out", model=model)

    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_source_fails(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    with pytest.raises(DataError, match="the file holds no rows"):
        process(write_rows(), tmp_path / "out", model=model)


def test_an_invalid_row_is_named(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    with pytest.raises(DataError, match=r"line 1: messages: The row has no 'messages'\. \[messages-missing\] Validate"):
        process(write_rows({}), tmp_path / "out", model=model)


def test_a_question_alone_is_trained_when_everything_is(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    _, train, _ = process(write_rows(conversation("A?")), tmp_path / "out", model=model, unmask_messages=True)

    assert load_tokenizer(model).decode([label for label in train[0]["labels"] if label != -100]) == "A?"


def test_documents_become_blocks_that_lose_no_token(
    tmp_path: Path, write_rows: Callable[..., Path], model: str
) -> None:
    documents = ["Iron is Fe.", "x" * 50, "Paris.", "hello world"]
    source = write_rows(*[{"text": text} for text in documents])

    report, train, _ = process(
        source,
        tmp_path / "out",
        model=model,
        data_format="documents",
        document_column="text",
        block_size=8,
        holdout_fraction=0.0,
    )

    tokens = [token for row in train for token in row["input_ids"]]
    assert load_tokenizer(model).decode(tokens) == "".join(text + "<|endoftext|>" for text in documents)
    assert {len(row["input_ids"]) for row in train[:-1]} == {8}
    assert 0 < len(train[-1]["input_ids"]) <= 8
    assert all(row["labels"] == row["input_ids"] for row in train)
    assert [row["row"] for row in train] == sorted(row["row"] for row in train)
    assert (train[0]["row"], train[-1]["row"], report.rows_in, report.rows_train) == (1, 4, 4, len(train))


def test_processed_rows_pass_through(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    source = write_rows({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [5] * 65, "labels": [5] * 65})

    report, train, _ = process(source, tmp_path / "out", model=model, data_format="processed", holdout_fraction=0.0)

    assert train == [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "row": 1, "length": 3, "trained_tokens": 2}]
    assert report.rows_dropped_too_long == 1


def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    source = write_rows({"input_ids": [1, 9999], "labels": [1, 1]})

    with pytest.raises(DataError, match=r"line 1: input_ids\[1\] is 9999, but the tokenizer has \d+ ids"):
        process(source, tmp_path / "out", model=model, data_format="processed")


def test_a_missing_source_is_named(tmp_path: Path, model: str) -> None:
    with pytest.raises(MissingPathError, match=r"valid\.jsonl: there is no such file"):
        process(tmp_path, tmp_path / "out", model=model)


def test_a_missing_model_is_named(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(MissingPathError, match="nowhere': no tokenizer could be loaded"):
        process(write_rows({}), tmp_path / "out", model=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_format": "xml"}, "data_format is 'xml'; allowed are auto, messages, sharegpt, alpaca"),
        ({"model": ""}, "model is empty"),
        ({"max_seq_len": 0}, "max_seq_len is 0; allowed is a whole number from 1"),
        ({"holdout_fraction": 1.0}, r"holdout_fraction is 1\.0; allowed is 0 up to, not including, 1"),
        ({"on_too_long": "split"}, "on_too_long is 'split'; allowed are drop, truncate, fail"),
        ({"data_format": "documents"}, "block_size is missing"),
        ({"data_format": "documents", "block_size": 65}, "block_size is 65; allowed is 2 to max_seq_len, 64"),
    ],
)
def test_a_bad_parameter_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProcessingConfig(**{"model": "m", "max_seq_len": 64, **options})


def test_several_processes_give_the_files_of_one(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [conversation(f"Question {index}?", "Fe." * (index % 30 + 1)) for index in range(40)]
    source = write_rows(*rows[:20], "", *rows[20:])
    options = {"model": model, "max_seq_len": 40, "on_too_long": "truncate"}
    one = process(source, tmp_path / "one", **options)
    monkeypatch.setattr(processing, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(processing, "CHUNK_BYTES", 500)

    several = process(source, tmp_path / "several", **options)

    assert one == several
    assert several[0].rows_truncated > 0
    for name in ("taken_rows.bin", "held_out_rows.bin", "too_long_rows.bin"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()


def test_an_error_in_another_process_names_the_line(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_rows(*[conversation("A?", "a")] * 30, {"messages": []})
    monkeypatch.setattr(processing, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(processing, "CHUNK_BYTES", 500)

    with pytest.raises(DataError, match=r"valid\.jsonl, line 31: messages: The conversation has no message"):
        process(source, tmp_path / "out", model=model)

    assert not (tmp_path / "out/train.parquet").exists()


def test_documents_cut_in_chunks_give_the_blocks_of_the_whole(
    tmp_path: Path, write_rows: Callable[..., Path], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(*[{"document": "Iron is Fe. " * (index % 7 + 1)} for index in range(30)])
    options = {"model": model, "data_format": "documents", "block_size": 10}
    whole = process(source, tmp_path / "whole", **options)
    monkeypatch.setattr(processing, "CHUNK_BYTES", 60)

    chunked = process(source, tmp_path / "chunked", **options)

    assert whole == chunked


def test_asked_again_nothing_is_written(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b"))
    first = process(source, tmp_path / "out", model=model)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}

    again = process(source, tmp_path / "out", model=model)

    assert first == again
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("change", ["rows", "options", "tokenizer", "train.parquet", "held_out_rows.bin"])
def test_anything_else_is_processed_anew(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    tokenizer_folder: Callable[[str], str],
    change: str,
) -> None:
    rows = [conversation("A?", "a"), conversation("B?", "b")]
    first, *_ = process(write_rows(*rows), tmp_path / "out", model=tokenizer_folder("CHATML"))
    is_file = "." in change
    if is_file:
        (tmp_path / "out" / change).unlink()
    source = write_rows(*rows, conversation("C?", "c")) if change == "rows" else write_rows(*rows)
    model = tokenizer_folder("LLAMA3" if change == "tokenizer" else "CHATML")

    again, train, _ = process(source, tmp_path / "out", model=model, seed=7 if change == "options" else 42)

    assert (first.key == again.key) == is_file
    assert not is_file or (tmp_path / "out" / change).is_file()
    assert len(train) == again.rows_train


def test_the_cache_gives_another_folder_the_same_files(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b"))
    config = ProcessingConfig(model=model, max_seq_len=64)
    cache = ContentCache(tmp_path / "cache")

    first = process_dataset(source, tmp_path / "first", config, cache=cache)
    second = process_dataset(source, tmp_path / "second", config, cache=cache)

    assert first == second
    for name in ("train.parquet", "taken_rows.bin", "held_out_rows.bin", "too_long_rows.bin"):
        assert (tmp_path / "first" / name).samefile(tmp_path / "second" / name)


@pytest.mark.parametrize(
    ("row", "options", "rows_train"),
    [
        ({"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}]}, {}, 1),
        ({"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {}, 1),
        ({"document": "Iron is Fe."}, {"block_size": 64}, 1),
    ],
)
def test_auto_takes_the_format_of_the_rows(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    model: str,
    row: dict[str, Any],
    options: dict[str, Any],
    rows_train: int,
) -> None:
    report, *_ = process(write_rows(row), tmp_path / "out", model=model, data_format="auto", **options)

    assert report.rows_train == rows_train


def test_auto_needs_a_block_size_for_documents(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    with pytest.raises(ConfigError, match="block_size is missing"):
        process(write_rows({"document": "Iron."}), tmp_path / "out", model=model, data_format="auto")


def test_auto_refuses_rows_of_no_known_shape(tmp_path: Path, write_rows: Callable[..., Path], model: str) -> None:
    with pytest.raises(DataError, match="the first row has no known shape"):
        process(write_rows({"words": "Iron."}), tmp_path / "out", model=model, data_format="auto")


@pytest.mark.parametrize("extra", [{"id": "7"}, {"reasoning_content": None}])
def test_what_nothing_reads_does_not_move_a_row_to_the_other_side(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    extra: dict[str, Any],
) -> None:
    rows = [conversation(f"Question {index}?", "Fe.") for index in range(30)]
    # Only an assistant's message may carry reasoning.
    twins = [{"messages": [row["messages"][0], {**row["messages"][1], **extra}]} for row in rows]

    _, train, holdout = process(write_rows(*rows, *twins), tmp_path / "out", model=model, holdout_fraction=0.4)

    train_ids, holdout_ids = ({tuple(row["input_ids"]) for row in side} for side in (train, holdout))
    assert train_ids.isdisjoint(holdout_ids)
    assert holdout_ids


def test_rows_of_a_file_that_validation_refused_are_refused(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    write_rows(conversation("A?", "a"))
    (tmp_path / "validation.json").write_bytes(orjson.dumps({"accepted": False}))

    with pytest.raises(DataError, match=r"valid\.jsonl: validation refused the file .* on_invalid=drop"):
        process(tmp_path, tmp_path / "out", model=model)

    (tmp_path / "validation.json").write_bytes(orjson.dumps({"accepted": True}))
    assert process(tmp_path, tmp_path / "out", model=model)[0].rows_train == 1


def test_a_failed_run_leaves_nothing_of_an_older_one(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    process(write_rows(conversation("A?", "a")), tmp_path / "out", model=model)

    with pytest.raises(DataError, match=r"line 1: messages"):
        process(write_rows({}), tmp_path / "out", model=model)

    assert list((tmp_path / "out").iterdir()) == []


def test_a_cached_report_names_the_model_that_was_asked_for(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b"))
    shutil.copytree(model, tmp_path / "copy")
    cache = ContentCache(tmp_path / "cache")
    process_dataset(source, tmp_path / "first", ProcessingConfig(model=model, max_seq_len=64), cache=cache)
    config = ProcessingConfig(model=str(tmp_path / "copy"), max_seq_len=64)

    report = process_dataset(source, tmp_path / "second", config, cache=cache)

    assert report.config == config
    assert ProcessingReport.load(tmp_path / "second/processing.json") == report
    assert ProcessingReport.load(tmp_path / "first/processing.json").config.model == model
