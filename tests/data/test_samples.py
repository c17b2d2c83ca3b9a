"""Token rows in arrays: what is read and what is checked."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.data import samples as samples_module
from osft.data.samples import (
    SCHEMA,
    Sample,
    Samples,
    count_trained,
    gather_samples,
    load_samples,
    token_lengths,
)
from osft.errors import DataError

VOCABULARY = 100
ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.booleans()), min_size=2, max_size=6), min_size=1, max_size=12
)


def make_samples(*lengths: int) -> list[Sample]:
    """Rows of counted ids; the first two labels are ignored."""
    samples = []
    for number, length in enumerate(lengths, start=1):
        ids = np.arange(1, length + 1, dtype=np.int32)
        labels = np.where(np.arange(length) < 2, -100, ids).astype(np.int32)
        samples.append(Sample(input_ids=ids, labels=labels, row=number))
    return samples


def as_lists(samples: Samples | list[Sample]) -> list[tuple[int, list[int], list[int]]]:
    return [(sample.row, sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples]


def write_processed(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Path:
    """Write ``rows`` as processing does; the small columns count the rows' tokens unless a row states them."""
    filled = [
        {
            "row": number,
            "length": len(row["input_ids"]),
            "trained_tokens": sum(label != -100 for label in row["labels"][1:]),
            **row,
        }
        for number, row in enumerate(rows, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(filled, schema=schema), path)
    return path


# Each example writes a file.
@settings(deadline=None, max_examples=40)
@given(rows=ROWS)
def test_every_row_of_a_file_comes_back_however_it_is_cut_into_blocks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, bool]]]
) -> None:
    # The last label is always trained, so that every row is allowed.
    pairs = [[*row[:-1], (row[-1][0], True)] for row in rows]
    table = [{"input_ids": [i for i, _ in row], "labels": [i if t else -100 for i, t in row]} for row in pairs]
    path = write_processed(tmp_path_factory.mktemp("rows") / "data.parquet", table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "BLOCK_ROWS", 3)
        samples = load_samples(path, VOCABULARY)

    assert as_lists(samples) == [(n, row["input_ids"], row["labels"]) for n, row in enumerate(table, start=1)]
    assert samples.lengths.tolist() == [len(row) for row in pairs]
    assert samples.trained_tokens.tolist() == [sum(t for _, t in row[1:]) for row in pairs]


def test_an_index_gives_a_row_and_a_slice_gives_rows() -> None:
    samples = gather_samples(make_samples(3, 5, 4))

    assert samples[-1].input_ids.tolist() == [1, 2, 3, 4]
    assert as_lists(samples[1:]) == as_lists(make_samples(3, 5, 4)[1:])
    with pytest.raises(IndexError):
        samples[3]


def test_selected_rows_keep_their_numbers_and_share_their_tokens() -> None:
    samples = gather_samples(make_samples(3, 5, 4))

    selected = samples.select(np.array([2, 0]))

    assert as_lists(selected) == [as_lists(samples)[2], as_lists(samples)[0]]
    assert selected.lengths.tolist() == [4, 3]
    assert selected.blocks is samples.blocks


def test_rows_that_are_cut_count_what_is_left_of_them() -> None:
    samples = gather_samples(make_samples(3, 6, 4)).cut(4)

    assert samples.lengths.tolist() == [3, 4, 4]
    assert samples.trained_tokens.tolist() == [1, 2, 2]
    assert samples[1].input_ids.tolist() == [1, 2, 3, 4]


def test_a_row_that_is_taken_may_be_written_to_without_changing_the_data() -> None:
    samples = gather_samples(make_samples(3))

    samples[0].labels[:] = 7

    assert samples[0].labels.tolist() == [-100, -100, 3]


def test_lengths_are_those_of_the_samples_in_a_list_too() -> None:
    samples = make_samples(3, 5)

    assert token_lengths(samples).tolist() == token_lengths(gather_samples(samples)).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("labels", "lengths", "expected"),
    [
        ([1, 2, 3], [3], [2]),
        ([-100, 2, 3, 4, -100], [3, 2], [2, 0]),
        ([5, 6, 7], [0, 1, 2, 0], [0, 0, 1, 0]),
        ([], [], []),
    ],
)
def test_the_first_label_of_a_row_is_never_counted(labels: list[int], lengths: list[int], expected: list[int]) -> None:
    counted = count_trained(np.array(labels, dtype=np.int32), np.array(lengths, dtype=np.int64))

    assert counted.tolist() == expected


def test_what_the_small_columns_say_is_counted_anew(tmp_path: Path) -> None:
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 7, "trained_tokens": 9}
    path = write_processed(tmp_path / "data.parquet", [row])

    samples = load_samples(path, VOCABULARY)

    assert (samples.lengths.tolist(), samples.trained_tokens.tolist()) == ([3], [2])


@pytest.mark.parametrize(
    ("first_labels", "second_ids", "expected"),
    [
        ([1, -100], [1, -7], r"row 1: every label behind the first is -100"),
        ([1, 1], [1, -7], r"row 2: input_ids\[1\] is -7; allowed is 0 to 99"),
    ],
)
def test_the_first_of_several_bad_rows_is_named(
    tmp_path: Path, first_labels: list[int], second_ids: list[int], expected: str
) -> None:
    rows = [{"input_ids": [1, 2], "labels": first_labels}, {"input_ids": second_ids, "labels": [1, 1]}]
    path = write_processed(tmp_path / "data.parquet", rows)

    with pytest.raises(DataError, match=expected):
        load_samples(path, VOCABULARY)


def test_an_empty_row_is_refused_in_the_midst_of_others(tmp_path: Path) -> None:
    row = {"input_ids": [1, 2], "labels": [1, 2]}
    path = write_processed(tmp_path / "data.parquet", [row, {"input_ids": [], "labels": []}, row])

    with pytest.raises(DataError, match="row 2: every label behind the first is -100"):
        load_samples(path, VOCABULARY)


@pytest.mark.parametrize("kind", [pa.large_list(pa.int64()), pa.list_(pa.uint16()), pa.list_(pa.int8())])
def test_lists_of_another_integer_width_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"input_ids": pa.array([[1, 2], [3, 4, 5]], kind), "labels": pa.array([[1, 2], [3, 4, 5]], kind)}
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")

    samples = load_samples(tmp_path / "data.parquet", VOCABULARY)

    assert as_lists(samples) == [(1, [1, 2], [1, 2]), (2, [3, 4, 5], [3, 4, 5])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["a"], "column 'row' holds no whole numbers"), ([None], "column 'row' has empty cells")],
)
def test_row_numbers_that_are_none_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    pq.write_table(pa.table({"input_ids": [[1, 2]], "labels": [[1, 2]], "row": rows}), tmp_path / "data.parquet")

    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "data.parquet", VOCABULARY)


def test_a_file_whose_pages_are_damaged_is_refused(tmp_path: Path) -> None:
    path = write_processed(tmp_path / "data.parquet", [{"input_ids": [1, 2], "labels": [1, 2]}] * 500)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_samples(path, VOCABULARY)


def test_rows_of_a_json_lines_file_are_counted_like_those_of_parquet(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]
    lines = tmp_path / "data.jsonl"
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    samples = load_samples(lines, VOCABULARY)

    parquet = load_samples(write_processed(tmp_path / "data.parquet", rows), VOCABULARY)
    assert as_lists(samples) == as_lists(parquet)
    assert samples.trained_tokens.tolist() == parquet.trained_tokens.tolist() == [2, 1]


def test_rows_cost_the_bytes_of_their_tokens_and_of_four_numbers(tmp_path: Path) -> None:
    amount, length = 20_000, 50
    tokens = pa.array(np.ones(amount * length, dtype=np.int32))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, amount * length + 1, length, dtype=np.int32)), tokens)
    pq.write_table(pa.table({"input_ids": lists, "labels": lists}), tmp_path / "data.parquet")
    load_samples(tmp_path / "data.parquet", VOCABULARY)

    tracemalloc.start()
    samples = load_samples(tmp_path / "data.parquet", VOCABULARY)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(samples) == amount
    # Names of columns, the file's footer and the like are beside them.
    assert used_bytes <= amount * (2 * 4 * length + 4 * 8) * 1.01 + 100_000
