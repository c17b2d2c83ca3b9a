"""The token ids of a run, on nodes that share a folder and on nodes that do not."""

from pathlib import Path

import pytest

from osft.errors import MissingPathError
from osft.training.train_data import mark_of, wait_until_visible


def test_the_file_that_the_first_process_wrote_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"rows")

    wait_until_visible(path, mark_of(path), global_rank=1, seconds=0)


@pytest.mark.parametrize("there", [None, b"old rows"])
def test_a_folder_that_the_nodes_do_not_share_is_named(tmp_path: Path, there: bytes | None) -> None:
    first = tmp_path / "first.parquet"
    first.write_bytes(b"new rows")
    path = tmp_path / "train.parquet"
    if there is not None:
        path.write_bytes(there)

    with pytest.raises(MissingPathError, match=r"train\.parquet: .* not on the node of rank 3. Give a data_output_dir"):
        wait_until_visible(path, mark_of(first), global_rank=3, seconds=0)
