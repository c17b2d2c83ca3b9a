from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.increments.row_hash import hash_document_row
from osft.data.increments.seen_rows import SeenRows, split_hashes
from osft.data.validation import duplicates
from osft.data.validation.duplicates import RowHashes, row_records


def hash_texts(texts: list[str]) -> bytes:
    """Return the hashes of documents, one behind the other."""
    return b"".join(hash_document_row({"document": text}, "document") for text in texts)


def find_duplicates(rows: list[str], directory: Path, *, size_bytes: int, most: int) -> tuple[int, list[list[int]]]:
    """Return the number of rows that equal an earlier one, and line, offset and first line of ``most`` of them."""
    with RowHashes(directory, size_bytes) as hashes:
        for start in range(0, len(rows), 3):
            part = rows[start : start + 3]
            lines = list(range(start + 1, start + len(part) + 1))
            hashes.add(row_records(split_hashes(hash_texts(part)), lines, [line * 10 for line in lines]))
        found = hashes.find(most, directory / "seen_rows.bin")
    return found.rows, [list(record) for record in found.first.tolist()]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sampled_from("abcde"), max_size=30))
@pytest.mark.parametrize("files", [1, 2, 8])
def test_every_row_that_equals_an_earlier_one_is_found(tmp_path: Path, rows: list[str], files: int) -> None:
    first: dict[str, int] = {}
    expected = []
    for line, row in enumerate(rows, start=1):
        if first.setdefault(row, line) != line:
            expected.append([line, line * 10, first[row]])

    count, found = find_duplicates(rows, tmp_path, size_bytes=(files - 1) * duplicates.BYTES_PER_FILE, most=5)

    assert count == len(expected)
    assert found == expected[:5]
    assert [path.name for path in tmp_path.iterdir()] == ["seen_rows.bin"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sampled_from("abcde"), max_size=30))
@pytest.mark.parametrize("files", [1, 2, 8])
def test_the_file_for_later_runs_has_each_row_once(tmp_path: Path, rows: list[str], files: int) -> None:
    find_duplicates(rows, tmp_path, size_bytes=(files - 1) * duplicates.BYTES_PER_FILE, most=5)

    kept = tmp_path / "seen_rows.bin"
    assert kept.stat().st_size == 16 * len(set(rows))
    found = SeenRows([kept]).contain(*split_hashes(hash_texts(list("abcdefg"))))
    assert found.tolist() == [letter in rows for letter in "abcdefg"]


@pytest.mark.parametrize(("size_bytes", "files"), [(0, 1), (1 << 28, 2), (7 << 30, 32), (1 << 50, 256)])
def test_a_larger_file_of_rows_gives_more_files_of_hashes(tmp_path: Path, size_bytes: int, files: int) -> None:
    with RowHashes(tmp_path, size_bytes):
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(kept) == files


def test_the_files_of_hashes_share_the_rows(tmp_path: Path) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, size=8_000, dtype=np.uint64)
    records = row_records((hashes, hashes), range(8_000), range(8_000))
    with RowHashes(tmp_path, 7 * duplicates.BYTES_PER_FILE) as kept:
        kept.add(records)
        kept.find(0, tmp_path / "seen_rows.bin")
        sizes = [path.stat().st_size // records.itemsize for path in tmp_path.glob(".hashes.*/*")]

    assert sum(sizes) == 8_000
    assert max(sizes) < 1_200


def test_an_error_leaves_no_file_of_hashes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), RowHashes(tmp_path, 0):
        raise RuntimeError("stop")

    assert list(tmp_path.iterdir()) == []
