"""What a task draws at random is drawn once, and the same whatever was loaded before."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lm_eval.api.task import Task

from osft.evaluation.config import EvaluationConfig
from osft.evaluation.documents import draw_documents, seeded
from osft.evaluation.tasks import load_tasks

CODE = """
import random

import numpy as np
import torch

def shuffle_choices(dataset):
    def shuffle(doc):
        choices = list("abcdefgh")
        random.shuffle(choices)
        return {"choices": choices, "gold": choices.index("a")}
    return dataset.map(shuffle)

def shuffle_rows(dataset):
    return dataset.shuffle()

def permute(dataset):
    return dataset.select(np.random.permutation(len(dataset)))

def permute_by_torch(dataset):
    return dataset.select(torch.randperm(len(dataset)).tolist())
"""
DRAWS = ("shuffle_choices", "shuffle_rows", "permute", "permute_by_torch")


def write_drawing_task(kit: Any, folder: Path, name: str, draw: str, **fields: Any) -> None:
    rows = [{"question": question, "gold": 0, "choices": list("abcdefgh")} for question in kit.questions]
    fields = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    } | fields
    kit.write_task(folder, name, rows, **fields)
    (folder / "draws.py").write_text(CODE)
    with (folder / f"{name}.yaml").open("a") as file:
        file.write(f"process_docs: !function draws.{draw}\n")


def load(folder: Path, *names: str, **settings: Any) -> dict[str, Any]:
    requested = load_tasks(EvaluationConfig(tasks=names, include_path=folder, **settings))
    return {task.task_name: task for one in requested for task in one.tasks}


def documents(task: Any) -> list[dict]:
    return list(task.eval_docs)


@pytest.mark.parametrize("draw", DRAWS)
def test_documents_are_drawn_once(kit: Any, tmp_path: Path, draw: str) -> None:
    write_drawing_task(kit, tmp_path, "drawn", draw)
    task = load(tmp_path, "drawn")["drawn"]

    first, second = documents(task), documents(task)

    assert first == second


@pytest.mark.parametrize("draw", DRAWS)
def test_draw_does_not_depend_on_what_was_loaded_before(kit: Any, tmp_path: Path, draw: str) -> None:
    for name in ("one", "two"):
        write_drawing_task(kit, tmp_path, name, draw)
    kit.write_group(tmp_path, "both", ["one", "two"])

    alone = documents(load(tmp_path, "two")["two"])
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    after_another = documents(load(tmp_path, "one", "two")["two"])
    in_a_group = documents(load(tmp_path, "both")["two"])

    assert alone == after_another == in_a_group


@pytest.mark.parametrize("draw", DRAWS)
def test_another_seed_is_another_draw_although_datasets_keeps_the_first(kit: Any, tmp_path: Path, draw: str) -> None:
    write_drawing_task(kit, tmp_path, "drawn", draw)

    drawn = [documents(load(tmp_path, "drawn", seed=seed)["drawn"]) for seed in (1, 2, 1)]

    assert drawn[0] == drawn[2]
    assert drawn[0] != drawn[1]


def test_examples_from_the_same_split_are_the_same_documents(kit: Any, tmp_path: Path) -> None:
    write_drawing_task(kit, tmp_path, "drawn", "shuffle_choices", fewshot_split="test", num_fewshot=2)

    task = load(tmp_path, "drawn")["drawn"]

    assert list(task.sampler.df) == documents(task)


def test_loading_leaves_the_cache_of_datasets_switched_on(kit: Any, tmp_path: Path) -> None:
    write_drawing_task(kit, tmp_path, "drawn", "shuffle_choices")

    load(tmp_path, "drawn")

    assert datasets.is_caching_enabled()


def random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("error", [None, OSError("no data")])
def test_random_numbers_are_left_as_they_were(error: OSError | None) -> None:
    before = random_states()

    with suppress(OSError), seeded(1):
        inside = random.random(), np.random.random(), torch.rand(1)
        if error:
            raise error

    assert random_states() == before
    assert all(0 <= number < 1 for number in inside)


class OldTask(Task):
    """A class of its own, whose examples can be gone through once."""

    def download(self, *_: Any, **__: Any) -> None:
        pass

    def has_training_docs(self) -> bool:
        return True

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def training_docs(self) -> Iterator[float]:
        return (random.random() for _ in range(3))

    def test_docs(self) -> list[float]:
        return [random.random() for _ in range(3)]

    doc_to_text = doc_to_target = construct_requests = process_results = aggregation = higher_is_better = None


def test_task_that_is_a_class_draws_once_too() -> None:
    task = OldTask()

    draw_documents(task, 5)

    assert list(task.training_docs()) == list(task.training_docs()) == task.test_docs() == task.eval_docs
    assert len(task.eval_docs) == 3
