from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.errors import DataError, EvaluationError, MissingPathError
from osft.evaluation.holdout import HoldoutRow, HoldoutTask, read_holdout, token_perplexity, trained_turns


@given(st.lists(st.booleans(), max_size=30))
def test_turns_are_the_trained_tokens_that_have_something_before_them(trained: list[bool]) -> None:
    labels = [1 if one else -100 for one in trained]

    turns = trained_turns(labels)

    covered = [index for start, end in turns for index in range(start, end)]
    assert covered == [index for index, one in enumerate(trained) if one and index > 0]
    assert all(start == 1 or not trained[start - 1] for start, _ in turns)


def test_rows_are_read_with_their_turns(kit: Any, tmp_path: Path) -> None:
    kit.write_holdout(tmp_path / "holdout.parquet", [([1, 2, 3, 4, 5], [-100, 2, -100, 4, 5])])

    rows = read_holdout(tmp_path, vocabulary_size=10)

    assert rows == (HoldoutRow(row=0, input_ids=(1, 2, 3, 4, 5), turns=((1, 2), (3, 5)), is_plain_text=False),)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no held-out rows"),
        ([([1, 2], [1])], "row 0: 2 input_ids and 1 labels"),
        ([([1, 10], [-100, 10])], "row 0: token id 10 is not below the vocabulary size 10"),
        ([([1, -1], [-100, 1])], "row 0: token id -1"),
        ([([1, 2], [-100, 2]), ([1, 2], [-100, -100])], "row 1: no trained token"),
    ],
)
def test_rows_that_cannot_be_scored_are_an_error(
    kit: Any, tmp_path: Path, rows: list[tuple[list[int], list[int]]], message: str
) -> None:
    kit.write_holdout(tmp_path / "holdout.parquet", rows)

    with pytest.raises(DataError, match=message):
        read_holdout(tmp_path / "holdout.parquet", vocabulary_size=10)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"holdout.parquet: the held-out rows are not there"):
        read_holdout(tmp_path, vocabulary_size=10)


def test_file_with_other_columns_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "holdout.parquet")

    with pytest.raises(DataError, match="no parquet file with columns input_ids, labels, row"):
        read_holdout(tmp_path, vocabulary_size=10)


def make_task(*, is_plain_text: bool) -> HoldoutTask:
    row = HoldoutRow(row=0, input_ids=(1, 2, 3, 4), turns=((1, 2), (3, 4)), is_plain_text=is_plain_text)
    return HoldoutTask([row], decode=lambda ids: " ".join(map(str, ids)))


def test_row_is_right_only_if_every_turn_is() -> None:
    task = make_task(is_plain_text=False)

    scores = task.process_results(task.test_docs()[0], [(-1.0, True), (-3.0, False)])

    assert scores == {"acc": 0.0, "token_loglikelihood": -2.0, "perplexity": (-4.0, 2)}


def test_plain_text_has_no_right_answer() -> None:
    task = make_task(is_plain_text=True)

    assert "acc" not in task.process_results(task.test_docs()[0], [(-1.0, True), (-3.0, True)])


def test_each_turn_is_asked_given_all_before_it() -> None:
    task = make_task(is_plain_text=False)

    requests = task.construct_requests(task.test_docs()[0], "", metadata=("holdout", 0, 1))

    assert [request.args for request in requests] == [("1", "2", [1], [2]), ("1 2 3", "4", [1, 2, 3], [4])]


def test_perplexity_beyond_a_float_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"the perplexity overflows \(mean log-likelihood -1e\+06 a token\)"):
        token_perplexity([(-1e6, 1)])
