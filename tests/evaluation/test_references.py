"""What versions left behind, and whether it may be compared: answers are given by each test, tasks are real."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement, measurement_path, save_measurements
from osft.evaluation.references import Reference, pair_with_references, read_references
from osft.evaluation.tasks import RequestedTask, load_tasks


@pytest.fixture(scope="module")
def tasks(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("one", "two"):
        kit.write_prose_task(folder, name)
    kit.write_group(folder, "both", ["one", "two"])
    return folder


def requested(tasks: Path, *names: str) -> tuple[RequestedTask, ...]:
    return load_tasks(EvaluationConfig(tasks=names, include_path=tasks))


def measured(task: str, scores: Sequence[float]) -> TaskMeasurement:
    return TaskMeasurement(
        task=task,
        metric="acc",
        higher_is_better=True,
        value=sum(scores) / len(scores),
        other_values={"f1": 0.5},
        documents=tuple(
            DocumentMeasurement(
                doc_id=number, fingerprint=f"{task} {number}", score=score, prompt="", gold="", answer=""
            )
            for number, score in enumerate(scores)
        ),
        version="1",
        num_fewshot=0,
    )


NOW = {"one": measured("one", [1, 1, 0, 1]), "two": measured("two", [1, 0])}


def read(tasks: Path, names: Sequence[str], folder: Path, **measurements: TaskMeasurement) -> Reference:
    """Return what is read of one version that left these measurements behind."""
    save_measurements(measurements, folder)
    config = EvaluationConfig(tasks=names, base_version="v0002", ancestor_measurements={"v0001": folder})  # type: ignore[arg-type]
    (reference,) = read_references(config, requested(tasks, *names), NOW)
    return reference


def test_answers_to_the_same_questions_are_taken(tasks: Path, tmp_path: Path) -> None:
    then = measured("one", [0, 1, 1, 1])

    reference = read(tasks, ("one", "two"), tmp_path, one=then)

    assert (reference.version, dict(reference.measurements), reference.left_out) == ("v0001", {"one": then}, ())


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (
            measured("one", [1, 1, 0]),
            "one is not compared with v0001: one had 3 documents then, and has 4 now.",
        ),
        (
            replace(NOW["one"], metric="acc_norm"),
            "one is not compared with v0001: one was scored by acc_norm then, and is by acc now.",
        ),
        (
            replace(
                NOW["one"],
                documents=(*NOW["one"].documents[:3], replace(NOW["one"].documents[3], fingerprint="other")),
            ),
            "one is not compared with v0001: document 3 of one is another one now, or is asked otherwise.",
        ),
    ],
)
def test_answers_to_other_questions_are_left_out_with_the_reason(
    tasks: Path, tmp_path: Path, then: TaskMeasurement, sentence: str
) -> None:
    reference = read(tasks, ("one", "two"), tmp_path, one=then, two=NOW["two"])

    assert set(reference.measurements) == {"two"}
    assert reference.left_out == (sentence,)


def test_group_is_known_as_a_whole_or_not_at_all(tasks: Path, tmp_path: Path) -> None:
    reference = read(tasks, ("both",), tmp_path, two=NOW["two"])

    assert dict(reference.measurements) == {}
    assert reference.left_out == ("both is not compared with v0001: it was not asked one.",)


def test_version_whose_answers_are_gone_is_named(tasks: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(
        tasks=("one",), base_version="v0002", ancestor_measurements={"v0001": tmp_path / "gone", "v0002": tmp_path}
    )

    (reference,) = read_references(config, requested(tasks, "one"), NOW)

    assert reference.left_out == (f"Nothing is compared with v0001: it left no answers behind ({tmp_path / 'gone'}).",)


def test_damaged_answers_are_an_error_and_not_a_missing_reference(tasks: Path, tmp_path: Path) -> None:
    measurement_path(tmp_path, "one").write_bytes(b"no parquet")

    with pytest.raises(EvaluationError, match=r"one\.parquet: no measurement of a task .*Delete it and evaluate again"):
        read(tasks, ("one",), tmp_path)


def test_name_of_a_task_may_be_any_text(tmp_path: Path) -> None:
    name = "../facts/[eu] 100%"

    save_measurements({name: measured(name, [1.0])}, tmp_path)

    (file,) = tmp_path.iterdir()
    assert file == measurement_path(tmp_path, name)
    assert TaskMeasurement.load(file).task == name


def test_pairs_have_every_version_that_knows_the_task_and_groups_are_one(tasks: Path) -> None:
    references = [
        Reference(version="v0001", measurements={"one": measured("one", [1, 1, 1, 1]), "two": measured("two", [0, 0])}),
        Reference(version="v0002", measurements={"one": measured("one", [0, 0, 0, 0])}),
        Reference(version="v0003", measurements=NOW),
    ]

    (group,) = pair_with_references(requested(tasks, "both"), references, NOW)
    one, two = pair_with_references(requested(tasks, "one", "two"), references, NOW)

    assert {version: (paired.label.task, paired.base) for version, paired in group.items()} == {
        "v0001": ("both", pytest.approx(4 / 6)),
        "v0003": ("both", pytest.approx(4 / 6)),
    }
    assert [list(by_version) for by_version in (one, two)] == [["v0001", "v0002", "v0003"], ["v0001", "v0003"]]
    assert one["v0001"].label.secondary == ()


def test_target_tasks_are_not_held_against_earlier_versions(tasks: Path) -> None:
    (one,) = requested(tasks, "one")
    base = Reference(version="v0001", measurements=NOW)

    pairs = list(pair_with_references([replace(one, kind="target")], [base, base], NOW))

    assert pairs == []
