import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.download import json_arrays
from osft.data.download.json_arrays import array_elements, holds_array
from osft.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


def elements(folder: Path, content: bytes) -> list[bytes]:
    path = folder / "a.json"
    path.write_bytes(content)
    return list(array_elements(path, "a.json"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(VALUES, max_size=9),
    chunk=st.integers(1, 20),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_an_array_is_read_whole_wherever_its_chunks_end(
    tmp_path: Path, rows: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "ARRAY_CHUNK_CHARACTERS", chunk)
        lines = elements(tmp_path, content)

    assert [json.loads(line) for line in lines] == rows
    assert not any(b"\n" in line for line in lines)


def test_an_element_keeps_its_text_but_for_line_breaks(tmp_path: Path) -> None:
    first, second = b'{"a": 1.50, "a": 1e999, "b": "\\ud800 \\n", "c": NaN}', b"9" * 5000

    lines = elements(tmp_path, b"\xef\xbb\xbf \r\n[" + first.replace(b", ", b",\r\n\t ") + b" ,\n" + second + b"\n]\n")

    assert lines == [first.replace(b", ", b","), second]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": 2}', "at element 2 .*has no end"),
        (b"[", "at element 0 .*has no end|Expecting value"),
        (b"[1,", "at element 1 .*no element behind the last comma|has no end|Expecting value"),
        (b"[1", "at element 1 .*has no end"),
        (b'[{"a": 1} {"a": 2}]', "at element 1 .*comma is missing"),
        (b'[{"a": 1},]', "no element behind the last comma"),
        (b'[{"a": 1}] x', "text behind the array"),
        (b'[{"a": 1}][', "text behind the array"),
        (b"[" * 100_000, "not a JSON array of rows, at element 1"),
        (b'[{"a": "\xff"}]', "not a JSON array of rows"),
        (b'[{"a": "\n"}]', "at element 1 .*Invalid control character"),
        (b"[nope]", "at element 1 .*Expecting value"),
    ],
)
def test_what_is_no_array_of_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.json: .*{message}"):
        elements(tmp_path, content)


def test_an_array_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = json.dumps([{"a": -1.5, "b": [True, None, '\\"\U0001f600']}, "é", 17], ensure_ascii=False).encode()

    for cut in range(1, len(content)):
        with pytest.raises(DataError, match=r"^a\.json: not a JSON array of rows"):
            elements(tmp_path, content[:cut])


def test_a_wrong_element_is_found_without_reading_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "ARRAY_CHUNK_CHARACTERS", 100)
    beyond_the_text_that_is_read = b"\xff" * 1_000_000

    with pytest.raises(DataError, match="at element 1 .*Expecting"):
        elements(tmp_path, b'[{"a": nope' + b" " * 9_000 + beyond_the_text_that_is_read)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1]", True),
        (b"\xef\xbb\xbf\n\t [", True),
        (b" " * 3_000_000 + b"[1]", True),
        (orjson.dumps({"a": [1]}), False),
        (b"", False),
        (b"\xef\xbb\xbf", False),
        (b"\n\n", False),
    ],
)
def test_an_array_is_known_by_its_first_character(tmp_path: Path, content: bytes, expected: bool) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)

    assert holds_array(path, "a.json") is expected
