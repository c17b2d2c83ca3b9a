from pathlib import Path

import pytest

from osft.errors import MissingPathError
from osft.lookup import describe_near, open_workspace


def test_a_near_name_is_offered() -> None:
    assert describe_near("demmo", ["demo", "other"]) == "Did you mean demo?"


def test_without_a_near_name_some_of_all_are_named() -> None:
    assert describe_near("zzz", [f"run-{number}" for number in range(7)]) == (
        "There is run-0, run-1, run-2, run-3, run-4 and 2 more."
    )


def test_where_there_is_nothing_it_says_so() -> None:
    assert describe_near("demo", []) == "There is none yet."


def test_a_workspace_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="nowhere: the workspace does not exist"):
        open_workspace(tmp_path / "nowhere")
