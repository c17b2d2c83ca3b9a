"""Two processes that promote one model at the same moment, again and again.

python tests/versions/racing_promotions.py WORKSPACE ROUNDS

Each round forks two processes, which wait for each other and then promote a run each; both runs began from the same
version. Prints what became of each, one line of JSON.
"""

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

from osft.versions.journal import LostRaceError
from osft.versions.promotion import promote_model
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, begin_run, finish_run, read_manifests

LONGEST_SECONDS = 60
HAS_LOST = 7


def promote_together(workspace: Workspace, run_id: str, barrier: Barrier) -> None:
    manifests = read_manifests(workspace, run_id)
    barrier.wait(LONGEST_SECONDS)
    try:
        promote_model(workspace, run_id=run_id, model_name=MODEL, **manifests)
    except LostRaceError:
        sys.exit(HAS_LOST)


def main() -> None:
    workspace, rounds = Workspace(Path(sys.argv[1])), int(sys.argv[2])
    fork = multiprocessing.get_context("fork")
    codes = []
    for number in range(rounds):
        run_ids = [f"run-{number}-{side}" for side in "ab"]
        for run_id in run_ids:
            begin_run(workspace, run_id)
            finish_run(workspace, run_id)
        barrier = fork.Barrier(2)
        processes = [fork.Process(target=promote_together, args=(workspace, run_id, barrier)) for run_id in run_ids]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LONGEST_SECONDS)
        codes.append([process.exitcode for process in processes])
    print(json.dumps(codes))  # noqa: T201


if __name__ == "__main__":
    main()
