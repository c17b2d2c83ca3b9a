"""A process that measures."""

from functools import partial

import pytest

from benchmarks.worker import Worker
from osft.errors import TrainingError


def test_a_process_that_fails_is_an_error_that_names_it() -> None:
    with (
        pytest.raises(TrainingError, match="the process of 'broken' ended. Its own error is printed above."),
        Worker("broken", partial(int, "no number")),
    ):
        pass
