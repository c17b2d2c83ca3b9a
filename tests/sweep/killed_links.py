"""Kills the linking of a step before each of its file operations, and does it again each time.

python tests/sweep/killed_links.py FOLDER

Every attempt is made in a fork, in a workspace whose run has an older step of the same name. Prints how each attempt
and its second try ended, and what the run's step was after each, as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from osft.sweep.linked_steps import link_step
from osft.workspace import Manifest, Workspace

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree")
KILLED = -signal.SIGKILL
RUN, STEP = "a-run", "training"


def kill_at_operation(number: int, folder: Path) -> None:
    """End this process like a kill -9 before its file operation ``number`` in ``folder``."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        # Before a file is only read there is nothing to lose that the next operation would not show.
        if event not in FILE_EVENTS or (event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
            return
        left -= str(arguments[0]).startswith(str(folder))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def link_in_fork(workspace: Workspace, manifest: Manifest, *, killed_at: int | None = None) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if killed_at:
                kill_at_operation(killed_at, workspace.root / "runs")
            link_step(workspace, manifest, RUN, STEP)
            code = 0
        finally:
            # Without what the parent would do at its end.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def describe(workspace: Workspace) -> str:
    """Return which step the run has: its weights' text if it is whole."""
    folder = workspace.run_directory(RUN) / STEP
    if not folder.exists():
        return "none"
    manifest = Manifest.load(folder / "manifest.json")
    is_whole = all((folder / file.name).stat().st_size == file.size_bytes for file in manifest.files)
    return (folder / "final/weights").read_text() if is_whole and len(manifest.files) == 2 else "broken"


def train(workspace: Workspace, run_id: str, weights: str) -> Manifest:
    def write(folder: Path) -> None:
        (folder / "final").mkdir()
        (folder / "final/weights").write_text(weights)
        (folder / "metrics").write_text("{}")

    return workspace.complete(run_id, STEP, inputs={"weights": weights}, work=write)


def main() -> None:
    root = Path(sys.argv[1])
    attempts: list[dict[str, Any]] = []
    while not attempts or attempts[-1]["code"] == KILLED:
        workspace = Workspace(root / str(len(attempts)))
        link_step(workspace, train(workspace, "older", "old"), RUN, STEP)
        new = train(workspace, "newer", "new")
        code = link_in_fork(workspace, new, killed_at=len(attempts) + 1)
        left = describe(workspace)
        again = link_in_fork(workspace, new)
        attempts.append({"code": code, "left": left, "again": again, "after": describe(workspace)})
    print(json.dumps(attempts))  # noqa: T201


if __name__ == "__main__":
    main()
