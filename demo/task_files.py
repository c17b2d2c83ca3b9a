"""The demo's lm-eval tasks: a YAML file and its questions for each, in ``demo/tasks``.

A task asks one question a document, in a chat, and takes only the exact answer. The path of its questions is relative
to its YAML file; lm-eval itself would resolve it against the current folder, so :func:`load_task` makes it absolute.
"""

from pathlib import Path
from typing import Any

import orjson
import yaml

from demo.conversations import Question, country_questions, element_questions
from demo.facts import COUNTRY_ATTRIBUTES
from demo.tokenizer import END
from osft.workspace import atomic_file

TASK_VERSION = 1.0
# The longest answer (a capital) takes 4 tokens, and one more ends the turn.
LONGEST_ANSWER_TOKENS = 8
TARGET_TASK = "element_facts"
RETENTION_TASKS = tuple(f"country_{field}" for field in COUNTRY_ATTRIBUTES)


def write_tasks(directory: Path) -> None:
    """Write every task's YAML file and questions to ``directory``."""
    countries = country_questions()
    for index, task in enumerate(RETENTION_TASKS):
        write_task(directory, task, countries[index :: len(RETENTION_TASKS)])
    write_task(directory, TARGET_TASK, element_questions())


def write_task(directory: Path, task: str, questions: list[Question]) -> None:
    """Write ``<task>.yaml`` and ``<task>.jsonl``."""
    write_json_lines(
        directory / f"{task}.jsonl",
        [{"question": question.text, "answer": question.answer} for question in questions],
    )
    with atomic_file(directory / f"{task}.yaml", "w") as file:
        yaml.safe_dump(task_config(task), file, sort_keys=False)


def task_config(task: str) -> dict[str, Any]:
    """Return a task as lm-eval reads it."""
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [END], "max_gen_toks": LONGEST_ANSWER_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": TASK_VERSION},
    }


def load_task(path: Path) -> dict[str, Any]:
    """Return the task of a YAML file with the paths of its data made absolute."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    data_files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"]["data_files"] = {
        split: str((path.parent / name).resolve()) for split, name in data_files.items()
    }
    return config


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    with atomic_file(path) as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
