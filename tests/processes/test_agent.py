"""What the agent makes of the ends of its workers."""

import signal
from pathlib import Path

import orjson
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from osft.errors import DataError, PreemptedError, TrainingError
from osft.processes.agent import describe_exit, root_cause


def ended(folder: Path, local_rank: int, exit_code: int, message: str = "", timestamp: int = 0) -> ProcessFailure:
    """Return a worker's end as the agent sees it; ``message`` is what the worker left in its error file."""
    error_file = folder / f"{local_rank}.json"
    if message:
        content = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": str(timestamp)}}
        error_file.write_bytes(orjson.dumps({"message": content}))
    return ProcessFailure(local_rank=local_rank, pid=1, exitcode=exit_code, error_file=str(error_file))


def test_an_error_of_ours_comes_back_with_kind_and_message(tmp_path: Path) -> None:
    failures = {0: ended(tmp_path, 0, -signal.SIGTERM), 1: ended(tmp_path, 1, 1, "DataError: row 3: bad", 5)}

    error = root_cause(failures)

    assert type(error) is DataError
    assert str(error) == "row 3: bad"


def test_a_preempted_worker_is_a_preempted_run(tmp_path: Path) -> None:
    error = root_cause({0: ended(tmp_path, 0, 143, "PreemptedError: stopped by SIGTERM after step 17", 5)})

    assert type(error) is PreemptedError


def test_an_error_of_another_library_is_one_line_that_names_the_process(tmp_path: Path) -> None:
    error = root_cause({6: ended(tmp_path, 0, 1, "OutOfMemoryError: CUDA out of memory.\n Tried", 5)})

    assert str(error) == "rank 6: OutOfMemoryError: CUDA out of memory. Tried"


def test_a_killed_process_is_the_cause_of_the_broken_collective_of_another(tmp_path: Path) -> None:
    killed = ended(tmp_path, 1, -signal.SIGKILL)
    failures = {0: ended(tmp_path, 0, 1, "RuntimeError: Connection closed by peer", killed.timestamp), 1: killed}

    error = root_cause(failures)

    assert type(error) is TrainingError
    assert str(error) == "rank 1 ended with exit code -9 (killed: is the machine out of memory?)."


def test_the_processes_that_were_told_to_stop_are_not_the_cause(tmp_path: Path) -> None:
    told = ended(tmp_path, 0, 143, "PreemptedError: stopped by SIGTERM after step 17", 5)

    error = root_cause({0: told, 1: ended(tmp_path, 1, 1, "DataError: row 3: bad", 5)})

    assert str(error) == "row 3: bad"


def test_the_first_of_two_errors_is_the_cause(tmp_path: Path) -> None:
    failures = {0: ended(tmp_path, 0, 1, "DataError: later", 9), 1: ended(tmp_path, 1, 1, "DataError: first", 5)}

    assert str(root_cause(failures)) == "first"


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [(-signal.SIGUSR1, "exit code -10 (SIGUSR1)"), (3, "exit code 3; its own message is further up in the log")],
)
def test_an_exit_code_is_put_into_words(exit_code: int, words: str) -> None:
    assert describe_exit(exit_code) == words
