import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.download import tables
from osft.data.download.tables import arrow_rows, csv_rows, parquet_rows
from osft.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": number, "messages": [{"role": "user", "content": text * number}], "score": number / 3}
    for number, text in enumerate(("Fe", "é\n", "x") * 60)
]
TABLE = pa.Table.from_pylist(ROWS)


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def arrow_bytes(table: pa.Table, new: Callable[..., Any], batch_rows: int = 50) -> bytes:
    buffer = io.BytesIO()
    with new(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return buffer.getvalue()


def csv_bytes(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def read(folder: Path, name: str, content: bytes) -> list[dict[str, Any]]:
    path = folder / name
    path.write_bytes(content)
    readers = {"parquet": parquet_rows, "arrow": arrow_rows, "csv": csv_rows}
    return list(readers[name.rpartition(".")[2]](path, name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet_bytes(TABLE)),
        ("a.parquet", parquet_bytes(TABLE, row_group_size=7, compression="zstd")),
        ("a.arrow", arrow_bytes(TABLE, pa.ipc.new_stream)),
        ("a.arrow", arrow_bytes(TABLE, pa.ipc.new_file)),
    ],
)
def test_a_table_gives_its_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path, name, content) == ROWS


SMALL = TABLE.slice(0, 9)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.parquet", parquet_bytes(SMALL), "parquet"),
        ("a.arrow", arrow_bytes(SMALL, pa.ipc.new_stream, 3), "Arrow"),
        ("a.arrow", arrow_bytes(SMALL, pa.ipc.new_file, 3), "Arrow"),
    ],
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_table_that_is_cut_off_anywhere_is_refused(
    tmp_path: Path, name: str, content: bytes, kind: str, share: float
) -> None:
    with pytest.raises(DataError, match=rf"^{name}: it cannot be read as {kind} \("):
        read(tmp_path, name, content[: int(share * len(content))])


def test_an_arrow_stream_that_is_cut_off_between_batches_is_refused(tmp_path: Path) -> None:
    stream = arrow_bytes(SMALL, pa.ipc.new_stream, 3)

    with pytest.raises(DataError, match="the stream has no end"):
        read(tmp_path, "a.arrow", stream.removesuffix(tables.END_OF_ARROW_STREAM))


def test_something_behind_an_arrow_stream_is_refused(tmp_path: Path) -> None:
    stream = arrow_bytes(SMALL, pa.ipc.new_stream)

    with pytest.raises(DataError, match="the stream has no end, or something follows it"):
        read(tmp_path, "a.arrow", stream + stream)


def test_text_that_is_not_utf8_names_row_and_column(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff"))
    table = pa.table({"id": [1, 2], "text": texts})

    with pytest.raises(DataError, match=r"row 2, column 'text' cannot be read \(UnicodeDecodeError\)"):
        read(tmp_path, "a.parquet", parquet_bytes(table))
    with pytest.raises(DataError, match=r"cannot be read as Arrow \(.*Invalid UTF8 sequence"):
        read(tmp_path, "a.arrow", arrow_bytes(table, pa.ipc.new_stream))


def test_a_date_that_python_does_not_know_names_row_and_column(tmp_path: Path) -> None:
    table = pa.table({"day": pa.array([0] * 99 + [10**9], pa.date32())})

    with pytest.raises(DataError, match=r"row 100, column 'day' cannot be read \(OverflowError\)"):
        read(tmp_path, "a.parquet", parquet_bytes(table))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([[1], [2]], names=["a", "a"])
    content = {
        "a.parquet": parquet_bytes(table),
        "a.csv": b"a,a\n1,2\n",
        "a.arrow": arrow_bytes(table, pa.ipc.new_stream),
    }[name]

    with pytest.raises(DataError, match="two columns have one name, among a, a"):
        read(tmp_path, name, content)


def test_dates_and_times_stay_what_they_are(tmp_path: Path) -> None:
    row = {"day": date(2026, 1, 31), "time": datetime(2026, 1, 31, 12, 30, tzinfo=UTC)}

    assert read(tmp_path, "a.parquet", parquet_bytes(pa.Table.from_pylist([row]))) == [row]


def test_csv_cells_that_hold_json_are_parsed_and_others_stay_text(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": 'é, "quoted"\n'}]
    content = csv_bytes([["id", "messages"], ["007", json.dumps(messages)], ["", "not json"]])

    rows = read(tmp_path, "a.csv", b"\xef\xbb\xbf" + content)

    assert rows == [{"id": "007", "messages": messages}, {"id": "", "messages": "not json"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b\n1,2\n3\n", "at line 3 .2 columns were expected and 1 are there"),
        (b"a,b\n1,2\n3", "at line 3 .2 columns were expected and 1 are there"),
        (b"a,b\n1,secret,3\n", "at line 2 .2 columns were expected and 3 are there"),
        (b'a,b\n1,"cut', "at line 2 .unexpected end of data"),
        (b'a,b\n1,"cut\n', "at line 2 .unexpected end of data"),
        (b'a\n"secret" x\n', "at line 2 .',' expected after '\"'"),
        (b"a,b\n1,\xff\n", "codec can't decode byte 0xff"),
        (b"a\xff,b\n1,2\n", "codec can't decode byte 0xff"),
    ],
)
def test_a_damaged_csv_file_is_refused_without_its_text(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.csv: it cannot be read as CSV .*{reason}") as caught:
        read(tmp_path, "a.csv", content)

    assert "secret" not in str(caught.value)


def test_a_csv_file_without_a_first_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: it has no columns"):
        read(tmp_path, "a.csv", b"")


@pytest.mark.parametrize("rows", [[["a"], ["1"], ["x" * 500]], [["a"], ["x\n" * 500]]])
def test_a_csv_line_or_cell_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[str]]
) -> None:
    monkeypatch.setattr(tables, "MAX_CELL_CHARACTERS", 100)
    previous_limit = csv.field_size_limit(100)

    with pytest.raises(DataError, match="a line has 100 characters or more|field larger than field limit"):
        read(tmp_path, "a.csv", csv_bytes(rows))

    csv.field_size_limit(previous_limit)


def test_a_csv_cell_may_be_longer_than_the_default_of_the_csv_module(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.csv", csv_bytes([["text"], ["x\n" * 100_000]]))

    assert rows == [{"text": "x\n" * 100_000}]


def test_blank_lines_of_a_csv_file_are_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b"a,b\r\n1,2\r\n\r\n3,4") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_an_unquoted_quote_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b'a,b\n1,5" disk\n') == [{"a": "1", "b": '5" disk'}]
