from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.errors import DataError, MissingPathError
from osft.evaluation.holdout import HoldoutRow, read_holdout
from osft.evaluation.holdout.rows import BATCH_ROWS, trained_turns


@given(st.lists(st.lists(st.booleans(), max_size=10), max_size=10))
def test_turns_are_the_trained_tokens_that_have_something_before_them(rows: list[list[bool]]) -> None:
    labels = np.array([1 if one else -100 for row in rows for one in row], dtype=np.int32)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)

    turns = trained_turns(labels, lengths)

    for row, its_turns in zip(rows, turns, strict=True):
        covered = [index for start, end in its_turns for index in range(start, end)]
        assert covered == [index for index, one in enumerate(row) if one and index > 0]
        assert all(start == 1 or not row[start - 1] for start, _ in its_turns)


def test_rows_are_read_with_their_turns(kit: Any, tmp_path: Path) -> None:
    kit.write_holdout(tmp_path / "holdout.parquet", [([1, 2, 3, 4, 5], [-100, 2, -100, 4, 5]), ([6, 7], [6, 7])])

    chat, prose = read_holdout(tmp_path, vocabulary_size=10)

    assert (chat.row, chat.input_ids.tolist(), chat.turns, chat.is_plain_text) == (
        0,
        [1, 2, 3, 4, 5],
        ((1, 2), (3, 5)),
        False,
    )
    assert (prose.row, prose.input_ids.tolist(), prose.turns, prose.is_plain_text) == (1, [6, 7], ((1, 2),), True)


def test_every_row_is_read_however_many_there_are(kit: Any, tmp_path: Path) -> None:
    rows = [([1 + number % 7, 8, 9], [-100, 8, 9]) for number in range(BATCH_ROWS + 3)]
    kit.write_holdout(tmp_path / "holdout.parquet", rows)

    read = read_holdout(tmp_path, vocabulary_size=10)

    assert [row.row for row in read] == list(range(BATCH_ROWS + 3))
    assert [row.input_ids.tolist() for row in read] == [ids for ids, _ in rows]


@pytest.mark.parametrize("change", [{"turns": ((2, 3),)}, {"is_plain_text": True}, {"input_ids": np.array([1, 2, 4])}])
def test_hash_of_a_row_depends_on_all_but_its_number(change: dict[str, Any]) -> None:
    row = HoldoutRow(row=1, input_ids=np.array([1, 2, 3], dtype=np.int32), turns=((1, 3),), is_plain_text=False)

    assert replace(row, row=2).sha256 == row.sha256
    assert replace(row, **change).sha256 != row.sha256


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no held-out rows"),
        ([([1, 2], [1])], "row 0: 2 input_ids and 1 labels"),
        ([([1, 10], [-100, 10])], "row 0: token id 10 is not below the vocabulary size 10"),
        ([([1, 2], [-100, 2]), ([1, -1], [-100, 1])], "row 1: token id -1"),
        ([([1, 2], [-100, 2]), ([1, 2], [-100, -100])], "row 1: no trained token"),
        ([([1, 2], [-100, 2]), ([1], [1])], "row 1: no trained token"),
        ([([], [])], "row 0: no trained token"),
        ([(None, None)], "row 0: no trained token"),
        ([(None, [1])], "row 0: 0 input_ids and 1 labels"),
    ],
)
def test_rows_that_cannot_be_scored_are_an_error(
    kit: Any, tmp_path: Path, rows: list[tuple[list[int] | None, list[int] | None]], message: str
) -> None:
    kit.write_holdout(tmp_path / "holdout.parquet", rows)

    with pytest.raises(DataError, match=message):
        read_holdout(tmp_path / "holdout.parquet", vocabulary_size=10)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"holdout.parquet: the held-out rows are not there"):
        read_holdout(tmp_path, vocabulary_size=10)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a"]},
        {"input_ids": [[1, 2]], "row": [1]},
        {"input_ids": ["12"], "labels": ["12"], "row": [1]},
        {"input_ids": [[1, None]], "labels": [[1, 2]], "row": [1]},
        {"input_ids": [[1, 2**40]], "labels": [[1, 2]], "row": [1]},
    ],
)
def test_file_with_other_columns_is_an_error(tmp_path: Path, columns: dict[str, list]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "holdout.parquet")

    with pytest.raises(DataError, match="no parquet file with columns input_ids, labels, row"):
        read_holdout(tmp_path, vocabulary_size=10)


def test_file_that_is_cut_off_is_an_error(kit: Any, tmp_path: Path) -> None:
    file = kit.write_holdout(tmp_path / "holdout.parquet", [([1, 2], [-100, 2])])
    file.write_bytes(file.read_bytes()[:-20])

    with pytest.raises(DataError, match="no parquet file with columns input_ids, labels, row"):
        read_holdout(tmp_path, vocabulary_size=10)
