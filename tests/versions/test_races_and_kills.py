"""Promotions of real processes: at the same moment, and killed at every file operation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from osft.versions.journal import Journal
from osft.versions.lineage import chain_of
from osft.workspace import Workspace

HERE = Path(__file__).parent
KILLED, HAS_LOST = -9, 7
ROUNDS = 20


def run_script(name: str, *arguments: object) -> list[Any]:
    finished = subprocess.run(
        [sys.executable, HERE / name, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    result: list[Any] = json.loads(finished.stdout)
    return result


@pytest.mark.slow
def test_of_two_runs_that_promote_at_the_same_moment_exactly_one_wins(tmp_path: Path) -> None:
    codes = run_script("racing_promotions.py", tmp_path, ROUNDS)

    workspace = Workspace(tmp_path)
    entries = Journal(workspace, "ours").entries()
    assert [sorted(both) for both in codes] == [[0, HAS_LOST]] * ROUNDS
    winners = [f"run-{number}-{'ab'[both.index(0)]}" for number, both in enumerate(codes)]
    assert [entry.run_id for entry in entries] == winners
    assert [entry.replaced for entry in entries] == [None, *(entry.version for entry in entries[:-1])]
    assert [lineage.run_id for lineage in chain_of(workspace, "ours")[1:]] == winners
    # Nothing is left of those that lost.
    left = {path.name for path in (tmp_path / "models/ours").iterdir()} - {"history", "latest"}
    assert left == {entry.version for entry in entries}


@pytest.mark.slow
def test_a_promotion_that_was_killed_at_any_moment_goes_on_and_makes_one_version(tmp_path: Path) -> None:
    attempts = run_script("killed_promotions.py", tmp_path, 0)

    assert [attempt["code"] for attempt in attempts] == [KILLED] * (len(attempts) - 1) + [0]
    # Kills came as the folder was put together, between its publication and the swap, and after the swap.
    lefts = [(attempt["left"]["folders"][-1], len(attempt["left"]["journal"])) for attempt in attempts]
    assert {(name, entries) for name, entries in lefts} >= {("v0001", 1), ("v0002", 1), ("v0002", 2)}
    assert any(attempt["left"]["folders"][0].endswith(".partial") for attempt in attempts)
    done = {
        "folders": ["v0001", "v0002"], "journal": [["v0001", "run-a"], ["v0002", "run-b"]], "latest": "v0002\n",
    }  # fmt: skip
    assert all((attempt["again"], attempt["after"]) == (0, done) for attempt in attempts)


@pytest.mark.slow
def test_a_promotion_that_was_killed_loses_if_another_was_faster_and_leaves_nothing(tmp_path: Path) -> None:
    attempts = run_script("killed_promotions.py", tmp_path, 1)

    outcomes = {(attempt["rival"], attempt["again"]) for attempt in attempts}
    assert outcomes == {(0, HAS_LOST), (HAS_LOST, 0)}
    for attempt in attempts:
        entries = attempt["after"]["journal"]
        assert [run_id for _, run_id in entries] == ["run-a", "run-c" if attempt["rival"] == 0 else "run-b"]
        assert attempt["after"]["folders"] == [version for version, _ in entries]
        assert attempt["after"]["latest"] == f"{entries[-1][0]}\n"
    # Some were killed when their folder was published already, and had to take it back.
    assert any("v0002" in one["left"]["folders"] and one["again"] == HAS_LOST for one in attempts)
