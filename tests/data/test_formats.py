import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data import formats
from osft.data.sources import download_dataset
from osft.errors import ConfigError, DataError

ROWS = [{"messages": [{"role": "assistant", "content": text}]} for text in ("Fe", "é\n", "x" * 50)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


def downloaded(path: Path) -> bytes:
    """Download a local file and return the rows as bytes."""
    output = path.parent / "output"
    download_dataset(str(path), output)
    return (output / "rows.jsonl").read_bytes()


def csv_bytes() -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "messages"])
    writer.writerows([f"00{index}", json.dumps(row["messages"])] for index, row in enumerate(ROWS))
    return buffer.getvalue().encode()


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".json", LINES),
        (".json", orjson.dumps(ROWS)),
        (".json", b"\xef\xbb\xbf \n" + orjson.dumps(ROWS, option=orjson.OPT_INDENT_2) + b"\n"),
        (".parquet", parquet_bytes()),
        (".JSONL", LINES),
    ],
)
@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.compress])
def test_every_format_gives_the_same_rows(
    tmp_path: Path, suffix: str, content: bytes, pack: Callable[[bytes], bytes] | None
) -> None:
    ending = {None: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]
    path = tmp_path / f"data{suffix}{ending}"
    path.write_bytes(pack(content) if pack else content)

    assert downloaded(path) == LINES


def test_csv_cells_that_hold_json_are_parsed_and_others_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(csv_bytes() + b"7,not json\n")

    rows = [orjson.loads(line) for line in downloaded(path).splitlines()]

    assert rows[:3] == [{"id": f"00{index}", **row} for index, row in enumerate(ROWS)]
    assert rows[3] == {"id": "7", "messages": "not json"}


def test_json_lines_stay_byte_for_byte_even_when_malformed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{ "a" : 1.50 }\r\n{broken\n\n\xff\xfe\n{"no": "newline"}')

    assert downloaded(path) == path.read_bytes() + b"\n"


def test_several_frames_and_members_are_read_to_the_end(tmp_path: Path) -> None:
    lines = LINES.splitlines(keepends=True)
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(b"".join(pack(line) for line in lines))

        assert downloaded(path) == LINES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], r"a\.jsonl\.gz: the \.gz file is damaged or cut off"),
        ("a.jsonl.gz", LINES, "damaged or cut off"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-9], r"the \.zst file is damaged or cut off"),
        ("a.jsonl.zst", LINES, "damaged or cut off"),
        ("a.parquet", parquet_bytes()[:-9], r"a\.parquet: it cannot be read as parquet"),
        ("a.csv", b"a,b\n1,2\n3\n", r"it cannot be read as CSV \(CSV parse error: Row #3\)"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "not a JSON array of rows, at element 2 .*has no end"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "at element 1 .*comma is missing"),
        ("a.json", b'[{"a": 1},]', "no element behind the last comma"),
        ("a.json", b'[{"a": 1}] x', "text behind the array"),
        ("a.json", b'[{"a": NaN}]', "element 1 is not JSON"),
        ("a.json", b"[" * 100_000, "not a JSON array of rows, at element 1"),
        ("a.json", b'[{"a": "\xff"}]', "not a JSON array of rows"),
        ("a.jsonl", b"", "there are no rows in it"),
        ("a.jsonl", b"\n \n", "there are no rows in it"),
        ("a.json", b"[]", "there are no rows in it"),
    ],
)
def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        downloaded(path)

    assert list((tmp_path / "output").iterdir()) == []


def test_a_value_without_json_form_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"\xff"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="row 1 holds a value that JSON cannot"):
        downloaded(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["data.txt", "data", "data.jsonl.bz2", "data.gz"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINES)

    with pytest.raises(ConfigError, match=r"the format is not known by its suffix\. Allowed are \.jsonl, \.json"):
        downloaded(tmp_path / name)


JSON_ROWS = st.lists(
    st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers(-9, 9) | st.lists(st.none(), max_size=2)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=JSON_ROWS, chunk=st.integers(1, 20), indent=st.sampled_from([None, 1]))
def test_an_array_is_read_whole_wherever_its_chunks_end(
    tmp_path: Path, rows: list[dict[str, Any]], chunk: int, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "ARRAY_CHUNK_CHARACTERS", chunk)
        lines = downloaded(path).splitlines()

    assert [orjson.loads(line) for line in lines] == rows
