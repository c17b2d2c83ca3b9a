"""What a run asked, by hash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from osft.errors import WorkspaceError
from osft.evaluation.measurement import TaskMeasurement, save_measurements
from osft.versions.folders import MEASUREMENTS_FOLDER, ORIGIN_FOLDER, versions_folder
from osft.versions.lineage import chain_of
from osft.versions.questions import question_hashes
from osft.workspace import Workspace
from tests.versions.finished_runs import MODEL, measure, promote

Measured = Callable[..., Path]


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    """Return a function that keeps measurements in a folder of this name."""

    def write(name: str, *measurements: TaskMeasurement) -> Path:
        save_measurements({one.task: one for one in measurements}, tmp_path / name)
        return tmp_path / name

    return write


def asking(task: str, *fingerprints: str, score: float = 0.5) -> TaskMeasurement:
    """Return the measurement of a task with these documents."""
    (document,) = measure(task, score).documents
    documents = tuple(replace(document, doc_id=place, fingerprint=one) for place, one in enumerate(fingerprints))
    return replace(measure(task, score), documents=documents)


def test_the_same_questions_have_one_hash_whatever_was_answered_and_whatever_they_are_called(
    measured: Measured,
) -> None:
    then = question_hashes(measured("then", asking("holdout", "a", "b")), ["holdout"])
    now = question_hashes(measured("now", asking("holdout_v0001", "a", "b", score=1.0)), ["holdout_v0001"])

    assert then["holdout"] == now["holdout_v0001"]


@pytest.mark.parametrize("fingerprints", [("a",), ("a", "c"), ("b", "a")])
def test_other_questions_have_another_hash(measured: Measured, fingerprints: tuple[str, ...]) -> None:
    then = question_hashes(measured("then", asking("exam", "a", "b")), ["exam"])
    now = question_hashes(measured("now", asking("exam", *fingerprints)), ["exam"])

    assert then["exam"] != now["exam"]


def test_a_group_that_is_scored_as_one_is_known_by_the_questions_of_its_tasks(measured: Measured) -> None:
    exam = asking("exam", "x")
    hashes = [
        question_hashes(measured(name, exam, asking("group_a", "a"), asking("group_b", question)), ["group", "exam"])
        for name, question in (("then", "b"), ("now", "other"))
    ]

    assert hashes[0]["exam"] == hashes[1]["exam"]
    assert hashes[0]["group"] != hashes[1]["group"]


def test_a_score_without_answers_is_an_error(measured: Measured) -> None:
    with pytest.raises(WorkspaceError, match="there are no answers to 'prose', which has a score. Evaluate again"):
        question_hashes(measured("run", asking("exam", "a")), ["exam", "prose"])


def test_every_score_of_a_version_and_of_its_origin_names_its_questions(workspace: Workspace) -> None:
    promote(workspace, "run-a")

    first = versions_folder(workspace, MODEL) / "v0001"
    for lineage, folder in zip(chain_of(workspace, MODEL), (first / ORIGIN_FOLDER, first), strict=True):
        asked = question_hashes(folder / MEASUREMENTS_FOLDER, [score.task for score in lineage.scores])
        assert {score.task: score.questions for score in lineage.scores} == asked
