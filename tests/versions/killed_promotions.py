"""Kills a promotion before each of its file operations, and does it again each time.

python tests/versions/killed_promotions.py FOLDER RIVAL

Every attempt is made in a fork, on a copy of one workspace. With RIVAL = 1 another run that began from the same version
is promoted after the kill, before the killed promotion is done again. Prints how each attempt, its rival and its second
try ended, and what was left after the kill and at the end, as JSON.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osft.versions.journal import Journal, LostRaceError
from osft.versions.promotion import promote_model
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, begin_run, finish_run, promote, read_manifests

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copytree")
RUN, RIVAL = "run-b", "run-c"
HAS_LOST = 7
KILLED = -signal.SIGKILL


def kill_at_operation(number: int, folder: Path) -> None:
    """End this process like a kill -9 before its file operation ``number`` in ``folder``."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        # Before a file is only read there is nothing to lose that the next operation would not show.
        if event not in FILE_EVENTS or (event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
            return
        if str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_fork(work: Callable[..., None], workspace: Workspace, run_id: str, *, killed_at: int | None = None) -> int:
    """Return how a fork ended that did ``work``, and was killed before that file operation."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if killed_at:
                kill_at_operation(killed_at, workspace.models)
            work(workspace, run_id)
            code = 0
        except LostRaceError:
            code = HAS_LOST
        finally:
            # Without what the parent would do at its end.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def promote_run(workspace: Workspace, run_id: str) -> None:
    promote_model(workspace, run_id=run_id, model_name=MODEL, **read_manifests(workspace, run_id))


def describe(workspace: Workspace) -> dict[str, Any]:
    versions = workspace.models / MODEL
    names = {path.name for path in versions.iterdir() if path.is_dir()}
    return {
        "folders": sorted(names - {"history"}),
        "journal": [[entry.version, entry.run_id] for entry in Journal(workspace, MODEL).entries()],
        "latest": (versions / "latest").read_text(),
    }


def prepare(workspace: Workspace) -> None:
    """Leave a version, and two finished runs that began from it."""
    promote(workspace, "run-a")
    for run_id in (RUN, RIVAL):
        begin_run(workspace, run_id)
        finish_run(workspace, run_id, memory=True)


def main() -> None:
    root, has_rival = Path(sys.argv[1]), sys.argv[2] == "1"
    whole = Workspace(root / "whole")
    prepare(whole)
    attempts: list[dict[str, Any]] = []
    while not attempts or attempts[-1]["code"] == KILLED:
        number = len(attempts) + 1
        workspace = Workspace(root / str(number))
        # No file is ever written to in place, so the copies share them.
        shutil.copytree(whole.root, workspace.root, copy_function=os.link)
        code = in_fork(promote_run, workspace, RUN, killed_at=number)
        left = describe(workspace)
        rival = in_fork(promote_run, workspace, RIVAL) if has_rival else None
        again = in_fork(promote_run, workspace, RUN)
        attempts.append({"code": code, "left": left, "rival": rival, "again": again, "after": describe(workspace)})
        shutil.rmtree(workspace.root)
    print(json.dumps(attempts))  # noqa: T201


if __name__ == "__main__":
    main()
