"""What was measured once is not measured again: after a kill, for another model on a known base, and only then."""

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import (
    HTML_NAME,
    MARKDOWN_NAME,
    REPORT_NAME,
    SAMPLES_NAME,
    evaluate_forgetting,
    measure_baseline,
)
from osft.evaluation.measurement import TaskMeasurement

OUTPUTS = (REPORT_NAME, HTML_NAME, MARKDOWN_NAME, SAMPLES_NAME)
EVERYTHING = {("base", "first"), ("base", "second"), ("tuned", "first"), ("tuned", "second")}

# Beside the tasks: the text of a question, or what the file "trap" says, once. lm-eval also asks for the first
# question when it loads the task, so the last one is the trap. The file lies above the tasks: in their folder it would
# make them other tasks.
TRAP = """
import os, signal
from pathlib import Path

def question(doc):
    trap = Path(__file__).parents[1] / "trap"
    if doc["question"] == "LAST" and trap.exists():
        kind = trap.read_text()
        trap.unlink()
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the disk is gone")
    return doc["question"]
"""

EVALUATE = """
import sys
from pathlib import Path
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting

base, tuned, tasks, output, cache = sys.argv[1:]
config = EvaluationConfig(tasks=("first", "second"), include_path=Path(tasks), limit=6)
evaluate_forgetting(base, tuned, config, Path(output), cache=Path(cache))
"""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Two models, two tasks and a cache."""

    base: Path
    tuned: Path
    config: EvaluationConfig
    cache: Path
    output: Path

    @property
    def tasks(self) -> Path:
        assert self.config.include_path is not None
        return self.config.include_path

    def evaluate(self, **changes: Any) -> None:
        evaluate_forgetting(
            str(self.base), str(self.tuned), replace(self.config, **changes), self.output, cache=self.cache
        )

    def measurements(self) -> dict[str, TaskMeasurement]:
        return {path.name: TaskMeasurement.load(path) for path in self.cache.rglob("*.parquet")}


@dataclass(frozen=True)
class Log:
    """What an evaluation said it did."""

    lines: list[str]

    def tasks(self, pattern: str) -> set[tuple[str, str]]:
        found = (re.fullmatch(rf"(\w+): task (\w+) \(\d of \d\){pattern}", line) for line in self.lines)
        return {(match[1], match[2]) for match in found if match}

    @property
    def known(self) -> set[tuple[str, str]]:
        return self.tasks(" is known")

    @property
    def asked(self) -> set[tuple[str, str]]:
        return self.tasks("")

    @property
    def loaded(self) -> list[str]:
        return [line.split(":")[0] for line in self.lines if re.match(r"\w+: loading /", line)]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what was logged since the last call."""
    # An entry point that ran in this process turned it off.
    monkeypatch.setattr(logging.getLogger("osft"), "propagate", True)
    caplog.set_level(logging.INFO, logger="osft")

    def take() -> Log:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return Log(lines)

    return take


@pytest.fixture(scope="module")
def evaluated(
    kit: Any, tmp_path_factory: pytest.TempPathFactory, base_model: Path, damaged_model: Path, base_oracle: Any
) -> Room:
    """A room in which both models have been evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    tasks = folder / "tasks"
    kit.write_letters_task(tasks, "first", base_oracle)
    kit.write_letters_task(tasks, "second", base_oracle, num_wrong=3)
    second = (tasks / "second.yaml").read_text()
    (tasks / "second.yaml").write_text(second.replace("'{{question}}'", "!function trap.question"))
    (tasks / "trap.py").write_text(TRAP.replace("LAST", kit.questions[5]))
    room = Room(
        base=base_model,
        tuned=damaged_model,
        config=EvaluationConfig(tasks=("first", "second"), include_path=tasks, limit=6),
        cache=folder / "cache",
        output=folder / "output",
    )
    room.evaluate()
    return room


@pytest.fixture
def room(evaluated: Room, tmp_path: Path) -> Room:
    """A room of one's own with the same results known."""
    shutil.copytree(evaluated.cache, tmp_path / "cache")
    shutil.copytree(evaluated.tasks, tmp_path / "tasks")
    config = replace(evaluated.config, include_path=tmp_path / "tasks")
    return replace(evaluated, config=config, cache=tmp_path / "cache", output=tmp_path / "output")


@pytest.fixture
def fresh(room: Room) -> Room:
    """A room of one's own in which only the base model is known."""
    shutil.rmtree(room.cache)
    measure_baseline(str(room.base), room.config, room.output, cache=room.cache)
    return room


def check_same_results(fresh: Room, evaluated: Room) -> None:
    assert fresh.measurements() == evaluated.measurements()
    assert len(fresh.measurements()) == len(EVERYTHING)
    for name in OUTPUTS:
        # The folder of the tasks is one of the settings in the report.
        content = (fresh.output / name).read_text().replace(str(fresh.tasks), str(evaluated.tasks))
        assert content == (evaluated.output / name).read_text()


def test_evaluation_that_failed_goes_on_at_the_task_that_failed(fresh: Room, evaluated: Room, log: Any) -> None:
    (fresh.tasks.parent / "trap").write_text("fail")
    with pytest.raises(EvaluationError, match="the tuned model .*, task 'second': OSError: the disk is gone"):
        fresh.evaluate()
    log()

    fresh.evaluate()

    resumed = log()
    assert resumed.known == EVERYTHING - {("tuned", "second")}
    assert resumed.loaded == ["tuned"]
    check_same_results(fresh, evaluated)


@pytest.mark.slow
def test_killed_evaluation_goes_on_at_the_task_that_it_was_killed_in(fresh: Room, evaluated: Room, log: Any) -> None:
    (fresh.tasks.parent / "trap").write_text("kill")
    arguments = [fresh.base, fresh.tuned, fresh.tasks, fresh.output, fresh.cache]
    killed = subprocess.run(
        [sys.executable, "-c", EVALUATE, *map(str, arguments)],
        env={**os.environ, "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)},
        check=False,
    )
    left = [name for name in OUTPUTS if (fresh.output / name).exists()]
    log()

    fresh.evaluate()

    resumed = log()
    assert killed.returncode == -signal.SIGKILL
    assert left == []
    assert resumed.known == EVERYTHING - {("tuned", "second")}
    assert resumed.loaded == ["tuned"]
    check_same_results(fresh, evaluated)


def test_known_models_are_not_loaded(room: Room, log: Any) -> None:
    log()

    room.evaluate()

    again = log()
    assert (again.known, again.asked, again.loaded) == (EVERYTHING, set(), [])


def test_next_model_on_a_known_base_is_the_only_one_that_is_loaded(
    kit: Any, room: Room, log: Any, tmp_path: Path
) -> None:
    other = replace(room, tuned=kit.save_model(tmp_path / "other", damage=0.1))
    log()

    other.evaluate()

    said = log()
    assert said.known == {("base", "first"), ("base", "second")}
    assert said.loaded == ["tuned"]


def test_model_that_passed_is_known_as_the_next_base(room: Room, log: Any) -> None:
    promoted = replace(room, base=room.tuned)
    log()

    promoted.evaluate()

    assert log().loaded == []


@pytest.mark.parametrize(
    "change", [{"limit": 5}, {"seed": 43}, {"batch_size": 8}, {"apply_chat_template": False}, {"num_fewshot": 1}]
)
def test_another_setting_measures_everything_anew(room: Room, log: Any, change: dict[str, Any]) -> None:
    log()

    room.evaluate(**change)

    assert log().asked == EVERYTHING


def test_another_limit_of_the_gate_measures_nothing_anew(room: Room, log: Any) -> None:
    log()

    room.evaluate(max_forgetting=0.5, task_limits={"first": 0.1})

    assert log().asked == set()


def change_row(tasks: Path) -> None:
    rows = (tasks / "second.jsonl").read_text()
    (tasks / "second.jsonl").write_text(rows.replace('"gold": 3', '"gold": 4', 1))


def change_prompt(tasks: Path) -> None:
    task = (tasks / "second.yaml").read_text()
    (tasks / "second.yaml").write_text(f"description: 'Answer: '\n{task}")


@pytest.mark.parametrize("change", [change_row, change_prompt])
def test_changed_task_is_measured_anew_and_one_without_functions_is_not(room: Room, log: Any, change: Any) -> None:
    before = {path: path.read_bytes() for path in room.tasks.iterdir() if path.is_file()}
    change(room.tasks)
    assert [path for path, content in before.items() if path.read_bytes() != content]
    log()

    room.evaluate()

    assert log().asked == {("base", "second"), ("tuned", "second")}


def test_changed_function_of_a_task_is_measured_anew(room: Room, log: Any) -> None:
    (room.tasks / "trap.py").write_text((room.tasks / "trap.py").read_text() + "\n# Changed.\n")
    log()

    room.evaluate()

    assert log().asked == {("base", "second"), ("tuned", "second")}


def write_code_below(tasks: Path) -> None:
    (tasks / "lib").mkdir()
    (tasks / "lib" / "scoring.py").write_text("WEIGHT = 2")


def write_data_file(tasks: Path) -> None:
    (tasks / "key.json").write_text("{}")


@pytest.mark.parametrize("write", [write_code_below, write_data_file])
def test_file_that_a_function_may_read_measures_tasks_with_functions_anew(room: Room, log: Any, write: Any) -> None:
    write(room.tasks)
    log()

    room.evaluate()

    assert log().asked == {("base", "second"), ("tuned", "second")}


DRAW = """
import random

def shuffle(dataset):
    return dataset.map(lambda doc: {"choices": random.sample("abcdefgh", 8)})
"""


def write_drawing_task(kit: Any, tasks: Path) -> None:
    """Write a task whose prompts have their choices in a random order."""
    kit.write_task(
        tasks,
        "drawn",
        [{"question": question} for question in kit.questions],
        output_type="multiple_choice",
        doc_to_text="{{question}} {{choices}}",
        doc_to_choice="choices",
        doc_to_target=0,
    )
    (tasks / "draw.py").write_text(DRAW)
    with (tasks / "drawn.yaml").open("a") as file:
        file.write("process_docs: !function draw.shuffle\n")


def test_task_that_draws_is_known_to_another_process_that_drew_before(
    kit: Any, room: Room, log: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawing = replace(room, config=replace(room.config, tasks=("drawn",), limit=None))
    write_drawing_task(kit, room.tasks)
    drawing.evaluate()
    first = log()
    random.seed(99)
    np.random.seed(99)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another cache")

    drawing.evaluate()

    assert first.asked == {("base", "drawn"), ("tuned", "drawn")}
    assert log().known == {("base", "drawn"), ("tuned", "drawn")}


def test_task_that_draws_is_measured_anew_with_another_seed(kit: Any, room: Room, log: Any) -> None:
    drawing = replace(room, config=replace(room.config, tasks=("drawn",), limit=None))
    write_drawing_task(kit, room.tasks)
    drawing.evaluate()
    log()

    # The draw of the other seed lies in the cache of datasets; it must not be given back.
    drawing.evaluate(seed=7)

    assert log().asked == {("base", "drawn"), ("tuned", "drawn")}


def test_changed_model_is_measured_anew_in_the_same_folder(kit: Any, room: Room, log: Any, tmp_path: Path) -> None:
    moving = replace(room, base=shutil.copytree(room.base, tmp_path / "base"))
    moving.evaluate()
    known = log()
    kit.save_model(moving.base, seed=5)

    moving.evaluate()

    assert known.asked == set()
    assert log().asked == {("base", "first"), ("base", "second")}
