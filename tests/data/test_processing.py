from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osft.data import processing
from osft.data.processing import ProcessingConfig, ProcessingReport, load_samples, process_dataset
from osft.data.tokenizing import load_tokenizer
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
    assert sorted(row["row"] for row in train + holdout) == list(range(1, 21))
    assert all(
        label in (-100, token) for row in train for token, label in zip(row["input_ids"], row["labels"], strict=True)
    )
    assert report.rows_in == report.rows_train + report.rows_holdout == 20
    assert report.train.tokens == sum(len(row["input_ids"]) for row in train)
    assert report.train.trained_tokens == sum(label != -100 for row in train for label in row["labels"])
    assert orjson.loads((tmp_path / "out/report.json").read_bytes())["rows_holdout"] == len(holdout)


def test_batches_change_nothing(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    conversation: Callable[..., dict[str, Any]],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_rows(*[conversation(f"Question {index}?", "Fe.") for index in range(10)])
    _, *whole = process(source, tmp_path / "whole", model=model)
    monkeypatch.setattr(processing, "BATCH_ROWS", 3)

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

    assert (len(train), len(holdout)) == (2, 0)
    assert pq.read_schema(tmp_path / "out/holdout.parquet").names == ["input_ids", "labels", "row"]


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


def test_rows_too_long_fail_if_asked(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("A?", "a"), conversation("B?", "b" * 100))

    with pytest.raises(DataError, match=r"line 2: the row has \d+ tokens, more than max_seq_len 64"):
        process(source, tmp_path / "out", model=model, on_too_long="fail")


def test_nothing_left_to_train_on_fails_and_leaves_no_file(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(conversation("B?", "b" * 100))

    with pytest.raises(DataError, match=r"no row is left to train on \(1 rows, 1 of them longer than 64 tokens\)"):
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

    assert train == [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "row": 1}]
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
        ({"data_format": "alpaca"}, "data_format is 'alpaca'; allowed are messages, processed, documents"),
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


def test_samples_are_what_processing_wrote(
    tmp_path: Path, write_rows: Callable[..., Path], conversation: Callable[..., dict[str, Any]], model: str
) -> None:
    source = write_rows(*[conversation(f"Question {index}?", "Fe.") for index in range(5)])
    _, train, _ = process(source, tmp_path / "out", model=model, holdout_fraction=0.0)

    samples = load_samples(tmp_path / "out", vocab_size=400)

    assert [sample.input_ids.tolist() for sample in samples] == [row["input_ids"] for row in train]
    assert [sample.labels.tolist() for sample in samples] == [row["labels"] for row in train]
    assert [sample.row for sample in samples] == [1, 2, 3, 4, 5]
    assert samples[0].input_ids.dtype == samples[0].labels.dtype == np.int32


def test_samples_come_from_json_lines_too(write_rows: Callable[..., Path]) -> None:
    first, last = {"input_ids": [1, 2], "labels": [-100, 2], "len": 2}, {"input_ids": [3, 1], "labels": [3, 1]}
    source = write_rows(first, "", last)

    samples = load_samples(source, vocab_size=4)

    assert [(sample.row, sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples] == [
        (1, [1, 2], [-100, 2]),
        (3, [3, 1], [3, 1]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 4], "labels": [1, 1]}, r"row 2: input_ids\[1\] is 4; allowed is 0 to 3; process the data"),
        ({"input_ids": [1, 1], "labels": [1, 4]}, r"row 2: labels\[1\] is 4; allowed is 0 to 3 or -100"),
        ({"input_ids": [1, 1], "labels": [1]}, r"row 2: .*2 input_ids .*1 labels"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, r"row 2: .*very label behind the first is -100"),
    ],
)
@pytest.mark.parametrize("as_parquet", [True, False])
def test_a_sample_that_cannot_be_trained_is_named(
    tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any], message: str, as_parquet: bool
) -> None:
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}, row]
    path = tmp_path / "data.parquet" if as_parquet else write_rows(*rows)
    if as_parquet:
        pq.write_table(pa.Table.from_pylist(rows), path)

    with pytest.raises(DataError, match=message):
        load_samples(path, vocab_size=4)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    pq.write_table(pa.table({"input_ids": [[1]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"input_ids": [["a"]], "labels": [["a"]]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"input_ids": [[1], None], "labels": [[1], [1]]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")

    for name, message in {
        "a": "column 'labels' is missing; it has input_ids",
        "b": "column 'input_ids' holds no lists of 32-bit whole numbers",
        "c": "column 'input_ids' has empty cells",
        "d": "cannot be read as parquet",
    }.items():
        with pytest.raises(DataError, match=message):
            load_samples(tmp_path / f"{name}.parquet", vocab_size=4)
    with pytest.raises(DataError, match="there is no row to train on"):
        load_samples(write_rows(), vocab_size=4)
    with pytest.raises(MissingPathError, match="there is no such file"):
        load_samples(tmp_path / "none.parquet", vocab_size=4)
