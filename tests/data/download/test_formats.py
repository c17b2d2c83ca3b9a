import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from osft.data.download.formats import copy_rows, write_rows
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import COMPRESSIONS, FORMATS, is_known, split_suffix
from osft.errors import ConfigError, DataError

Pack = Callable[[bytes], bytes]
ROWS = [{"messages": [{"role": "assistant", "content": text}]} for text in ("Fe", "é\n", "x" * 50)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
PACKS: dict[str, Pack] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def copied(path: Path, name: str | None = None) -> bytes:
    """Copy a file's rows, and check that nothing but the file is left behind."""
    before = sorted(path.parent.iterdir())
    rows = io.BytesIO()
    try:
        copy_rows(path, name or path.name, RowSink(rows), path.parent)
    finally:
        assert sorted(path.parent.iterdir()) == before
    return rows.getvalue()


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def arrow_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def csv_bytes() -> bytes:
    cells = [json.dumps(row["messages"]).replace('"', '""') for row in ROWS]
    return "".join(f'"{cell}"\n' for cell in ["messages", *cells]).encode()


CONTENTS = {
    ".jsonl": LINES,
    ".json": orjson.dumps(ROWS),
    ".parquet": parquet_bytes(pa.Table.from_pylist(ROWS)),
    ".csv": csv_bytes(),
    ".arrow": arrow_bytes(pa.Table.from_pylist(ROWS)),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_every_format_gives_the_same_rows_however_it_is_packed(tmp_path: Path, suffix: str, compression: str) -> None:
    pack = PACKS.get(compression, bytes)
    path = tmp_path / f"data{suffix}{compression}"
    path.write_bytes(pack(CONTENTS[suffix]))

    assert copied(path) == LINES


def test_a_suffix_may_have_capital_letters(tmp_path: Path) -> None:
    path = tmp_path / "DATA.JSONL.GZ"
    path.write_bytes(gzip.compress(LINES))

    assert copied(path) == LINES


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(LINES)

    assert copied(path) == LINES


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_json_lines_stay_byte_for_byte_even_when_malformed(tmp_path: Path, compression: str) -> None:
    text = b'{ "a" : 1.50 }\r\n{broken\n\n\xff\xfe\n{"no": "newline"}'
    path = tmp_path / f"data.jsonl{compression}"
    path.write_bytes(PACKS.get(compression, bytes)(text))

    assert copied(path) == text + b"\n"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"a{suffix}{compression}"
    path.write_bytes(PACKS[compression](CONTENTS[suffix])[:-9])

    with pytest.raises(DataError, match=rf"^a\{suffix}\{compression}: the \{compression} file is damaged or cut off"):
        copied(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_damaged_table_in_a_packed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}.gz"
    path.write_bytes(gzip.compress(CONTENTS[suffix][:-9]))

    with pytest.raises(DataError, match=rf"^a\{suffix}\.gz: it cannot be read as"):
        copied(path)


@pytest.mark.parametrize(
    ("value", "kind"), [(b"\xff", "bytes"), (Decimal("1.5"), "Decimal"), (timedelta(seconds=1), "timedelta")]
)
def test_a_value_without_json_form_names_row_and_column(tmp_path: Path, value: Any, kind: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(pa.table({"id": [1, 2], "extra": [None, value]})))

    with pytest.raises(DataError, match=rf"a\.parquet: row 2, column 'extra' holds a value that JSON cannot .*{kind}"):
        copied(path)


def test_dates_and_times_become_iso_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "day": pa.array([20_000], pa.date32()),
            "local": pa.array([1_700_000_000_123_456], pa.timestamp("us")),
            "zoned": pa.array([1_700_000_000], pa.timestamp("s", "+02:00")),
            "fine": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        }
    )
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(table))

    assert orjson.loads(copied(path)) == {
        "day": "2024-10-04",
        "local": "2023-11-14T22:13:20.123456",
        "zoned": "2023-11-15T00:13:20+02:00",
        "fine": "2023-11-14T22:13:20.123456789",
    }


def test_rows_of_a_library_are_written_as_json() -> None:
    rows = io.BytesIO()

    write_rows(ROWS, "hf://name", RowSink(rows))

    assert rows.getvalue() == LINES


@pytest.mark.parametrize("name", ["data.txt", "data", "data.jsonl.lz4", "data.gz", "data.zip.gz", "jsonl"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINES)

    with pytest.raises(ConfigError, match=r"the format is not known by its suffix\. Allowed are \.jsonl, \.json"):
        copied(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.b.jsonl", (".jsonl", "")),
        ("a.JSON.Gz", (".json", ".gz")),
        ("a.arrow.xz", (".arrow", ".xz")),
        ("a.zip", (".zip", "")),
        ("a.tar", (".tar", "")),
        ("a.tar.zst", (".tar", ".zst")),
        ("a.tgz", (".tar", ".gz")),
    ],
)
def test_a_name_gives_format_and_compression(name: str, parts: tuple[str, str]) -> None:
    assert is_known(name)
    assert split_suffix(name) == parts


def peak_of_copying(first: Path, second: Path) -> tuple[float, float]:
    """Copy two files in a fresh process; return the peak of its memory after the first and the second, in MB."""
    program = r"""
        import re, sys, tempfile
        from pathlib import Path
        from osft.data.download.formats import copy_rows
        from osft.data.download.row_sink import RowSink
        with open("/dev/null", "wb") as nowhere, tempfile.TemporaryDirectory() as scratch:
            for path in map(Path, sys.argv[1:]):
                copy_rows(path, path.name, RowSink(nowhere), Path(scratch))
                # Not getrusage, where a process starts with the peak of the one that started it.
                print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(program), str(first), str(second)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    peak_after_first, peak_after_second = map(float, output.split())
    return peak_after_first, peak_after_second


MB = 1 << 20


def array_of(megabytes: int) -> bytes:
    return b"[" + b",".join([b'{"text": "' + b"x" * 1000 + b'"}'] * (megabytes * 1000)) + b"]"


def csv_of(megabytes: int) -> bytes:
    return b"text\n" + (b"x" * 1000 + b"\n") * (megabytes * 1000)


def wide_parquet(megabytes: int) -> bytes:
    # Rows of a megabyte, each a page of its own, which is read at once, in one row group.
    texts = [chr(97 + number % 26) * MB for number in range(megabytes)]
    return parquet_bytes(
        pa.table({"text": pa.array(texts)}), use_dictionary=False, compression="none", write_batch_size=1
    )


def members(pack: Pack) -> Callable[[int], bytes]:
    # A line that does not end, in members of 8 MB.
    return lambda megabytes: pack(b"x" * (8 * MB)) * (megabytes // 8)


@pytest.mark.parametrize(
    ("suffix", "make", "megabytes"),
    [
        (".jsonl", lambda megabytes: b"x" * (megabytes * MB), (8, 64)),
        (".jsonl.gz", members(gzip.compress), (8, 64)),
        (".jsonl.zst", members(zstandard.compress), (8, 64)),
        (".jsonl.bz2", members(bz2.compress), (8, 64)),
        (".jsonl.xz", members(lzma.compress), (8, 64)),
        (".json", array_of, (8, 64)),
        (".csv", csv_of, (8, 64)),
        # A batch of rows, in its several forms, takes about 50 MB.
        (".parquet", wide_parquet, (64, 128)),
    ],
)
def test_a_large_file_takes_hardly_more_memory_than_a_small_one(
    tmp_path: Path, suffix: str, make: Callable[[int], bytes], megabytes: tuple[int, int]
) -> None:
    small, large = tmp_path / f"small{suffix}", tmp_path / f"large{suffix}"
    small.write_bytes(make(megabytes[0]))
    large.write_bytes(make(megabytes[1]))

    peak_of_small, peak_of_large = peak_of_copying(small, large)

    # The larger one has 56 MB more, or 64; allocators keep some of what they are given back.
    assert peak_of_large - peak_of_small < 16
