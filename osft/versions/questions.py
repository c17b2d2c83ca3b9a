"""What a run's tasks asked, as a hash for each: scores are compared where it is the same.

A task keeps its name when its file is edited or another limit of documents is set, and its scores are then those of
another task. Every document of a measurement has a fingerprint of itself, its right answer and all that was asked; the
evaluation's gate compares nothing where these differ (:mod:`osft.evaluation.references`), and neither does the
accuracy matrix.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from osft.content_cache import content_key
from osft.errors import WorkspaceError
from osft.evaluation.measurement import measurement_path

COLUMNS = ["doc_id", "fingerprint"]


def question_hashes(measured: Path, tasks: Iterable[str]) -> dict[str, str]:
    """Return a hash of the questions of each task.

    A group of tasks that is scored as one has no measurement of its own name. It is taken to ask all that no other
    task of the run does: with two such groups, what changes in one makes both others.

    Args:
        measured: folder with a measurement of each task, those of groups among them.
        tasks: names of all tasks that have a score.

    Raises:
        WorkspaceError: if there is no measurement that a task's score can come from.
    """
    tasks = list(tasks)
    files = {task: measurement_path(measured, task) for task in tasks}
    in_groups = sorted(set(measured.glob("*.parquet")) - set(files.values()))
    hashes = {}
    for task, file in files.items():
        asked = [file] if file.is_file() else in_groups
        if not asked:
            raise WorkspaceError(f"{measured}: there are no answers to '{task}', which has a score. Evaluate again.")
        hashes[task] = content_key({path.stem if len(asked) > 1 else "": _questions(path) for path in asked})
    return hashes


def _questions(file: Path) -> list[list[Any]]:
    """Return number and fingerprint of each document, in their order."""
    # Without their prompts, which are long: who copies the file checks all of it.
    table = pq.read_table(file, columns=COLUMNS)
    return [list(pair) for pair in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)]
