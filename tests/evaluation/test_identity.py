import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.models.dummy import DummyLM

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.holdout import HoldoutTask, read_holdout
from osft.evaluation.identity import code_versions, model_fingerprint, task_fingerprint, uses_code
from osft.evaluation.tasks import load_tasks

QUESTIONS = tuple({"question": f"What is {number}?", "answer": str(number)} for number in range(6))
SHOTS = tuple({"question": f"And {number}?", "answer": str(number)} for number in range(10, 14))
CODE = """
import functools
import random

def ask(doc):
    return "Q: " + doc["question"]

def drop(dataset, first):
    return dataset.select(range(first, len(dataset)))

def asker(word):
    return lambda doc: word + doc["question"]

drop_one = functools.partial(drop, first=1)
drop_two = functools.partial(drop, first=2)
ask_politely = asker("Please: ")
ask_rudely = asker("Hey: ")
def draw(dataset):
    return dataset.select(random.SystemRandom().sample(range(len(dataset)), len(dataset)))

keep_all = functools.cache(lambda dataset: dataset)
"""
FIELDS: Mapping[str, Any] = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "test.jsonl", "train": "train.jsonl"}},
    "test_split": "test",
    "fewshot_split": "train",
    "num_fewshot": 1,
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


def write_quiz(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, Any]] = QUESTIONS,
    shots: Sequence[Mapping[str, Any]] = SHOTS,
    code: str = CODE,
    **fields: Any,
) -> Path:
    """Write a task with its data and its functions; a field whose value begins with ``utils.`` is a function."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("test", rows), ("train", shots)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    (folder / "utils.py").write_text(code)
    text = yaml.safe_dump(dict(FIELDS) | fields, sort_keys=False)
    (folder / "quiz.yaml").write_text(text.replace(" utils.", " !function utils."))
    return folder


def load_quiz(folder: Path, **settings: Any) -> Task:
    (requested,) = load_tasks(EvaluationConfig(tasks=("quiz",), include_path=folder, **settings))
    return requested.tasks[0]


def quiz_fingerprint(folder: Path, **changes: Any) -> str:
    return task_fingerprint(load_quiz(write_quiz(folder, **changes)))


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return quiz_fingerprint(tmp_path_factory.mktemp("quiz"))


def test_task_is_the_same_in_another_folder(tmp_path: Path, quiz: str) -> None:
    assert quiz_fingerprint(tmp_path / "elsewhere") == quiz


def test_task_is_the_same_with_its_fields_in_another_order(tmp_path: Path, quiz: str) -> None:
    backwards = {key: FIELDS[key] for key in reversed(FIELDS)}
    backwards["generation_kwargs"] = dict(reversed(FIELDS["generation_kwargs"].items()))
    (write_quiz(tmp_path) / "quiz.yaml").write_text(yaml.safe_dump(backwards, sort_keys=False))

    assert task_fingerprint(load_quiz(tmp_path)) == quiz


@pytest.mark.slow
def test_task_is_the_same_in_another_process(tmp_path: Path, quiz: str) -> None:
    program = (
        "import sys; from pathlib import Path; from osft.evaluation.config import EvaluationConfig;"
        "from osft.evaluation.identity import task_fingerprint; from osft.evaluation.tasks import load_tasks;"
        "config = EvaluationConfig(tasks=('quiz',), include_path=Path(sys.argv[1]));"
        "print(task_fingerprint(load_tasks(config)[0].tasks[0]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    ran = subprocess.run(
        [sys.executable, "-c", program, str(write_quiz(tmp_path / "tasks"))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout.split()[-1] == quiz


def test_task_is_the_same_after_it_was_evaluated(tmp_path: Path, quiz: str) -> None:
    task = load_quiz(write_quiz(tmp_path))

    evaluate(lm=DummyLM(), task_dict={"tasks": {"quiz": task}}, bootstrap_iters=0)

    assert task_fingerprint(task) == quiz


@pytest.mark.parametrize(
    "change",
    [
        {"description": "Answer in one word."},
        {"doc_to_text": "{{question}}\nAnswer:"},
        {"doc_to_target": "question"},
        {"doc_to_text": "utils.ask"},
        {"process_docs": "utils.drop_one"},
        {"fewshot_split": "test"},
        {"fewshot_config": {"sampler": "first_n"}},
        {"fewshot_delimiter": "\n"},
        {"num_fewshot": 2},
        {"generation_kwargs": FIELDS["generation_kwargs"] | {"max_gen_toks": 4}},
        {"metric_list": [FIELDS["metric_list"][0] | {"ignore_case": True}]},
        {"filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}]},
        {"repeats": 2},
        {"metadata": {"version": 2.0}},
        {"rows": (*QUESTIONS[:-1], QUESTIONS[-1] | {"answer": "6"})},
        {"rows": QUESTIONS[:-1]},
        {"rows": (*QUESTIONS[1:], QUESTIONS[0])},
        {"shots": (*SHOTS[:-1], SHOTS[-1] | {"answer": "6"})},
    ],
    ids=lambda change: "-".join(change),
)
def test_task_with_a_change_is_another(tmp_path: Path, quiz: str, change: dict[str, Any]) -> None:
    assert quiz_fingerprint(tmp_path, **change) != quiz


@pytest.mark.parametrize(
    ("fields", "num_fewshot"),
    [({"process_docs": "utils.draw"}, 0), ({"fewshot_config": {"process_docs": "utils.draw"}}, 1)],
    ids=["documents", "examples"],
)
def test_two_draws_that_no_seed_governs_are_two_tasks(tmp_path: Path, fields: dict[str, Any], num_fewshot: int) -> None:
    shots = [{"question": str(number), "answer": "x"} for number in range(50)]
    folder = write_quiz(tmp_path, rows=shots, shots=shots, num_fewshot=num_fewshot, **fields)
    task = load_quiz(folder)

    assert task_fingerprint(task) == task_fingerprint(task)
    assert task_fingerprint(load_quiz(folder)) != task_fingerprint(task)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"process_docs": "utils.keep_all"}, True),
        ({"fewshot_config": {"process_docs": "utils.keep_all"}}, True),
        ({"doc_to_text": "utils.ask"}, True),
    ],
)
def test_task_uses_code_where_it_has_a_function(tmp_path: Path, fields: dict[str, Any], expected: bool) -> None:
    assert uses_code(load_quiz(write_quiz(tmp_path, **fields))) is expected


def write_package(folder: Path, name: str, version: str, origin: Mapping[str, Any] | None = None) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))


def test_versions_name_lm_eval_and_what_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "lm_eval", "9.8")
    write_package(tmp_path, "math_verify", "7.6")
    monkeypatch.syspath_prepend(tmp_path)

    versions = code_versions()

    assert (versions["lm-eval"], versions["math-verify"]) == ("9.8", "7.6")
    assert "lm-eval commit" not in versions


def test_commit_of_lm_eval_from_a_repository_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"url": "https://host/lm-eval", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    write_package(tmp_path, "lm_eval", "9.8", origin)
    monkeypatch.syspath_prepend(tmp_path)

    assert code_versions()["lm-eval commit"] == "abc"


def test_commit_of_lm_eval_in_a_working_copy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "a clone"
    (clone / ".git" / "refs" / "heads").mkdir(parents=True)
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (clone / ".git" / "refs" / "heads" / "main").write_text("def\n")
    write_package(tmp_path, "lm_eval", "9.8", {"url": clone.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.syspath_prepend(tmp_path)

    assert code_versions()["lm-eval commit"] == "def"


@pytest.mark.parametrize("settings", [{"num_fewshot": 3}, {"generation": {"max_gen_toks": 9}}])
def test_task_that_the_user_gives_other_settings_is_another(
    tmp_path: Path, quiz: str, settings: dict[str, Any]
) -> None:
    assert task_fingerprint(load_quiz(write_quiz(tmp_path), **settings)) != quiz


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"process_docs": "utils.drop_one"}, {"process_docs": "utils.drop_two"}),
        ({"doc_to_text": "utils.ask_politely"}, {"doc_to_text": "utils.ask_rudely"}),
        ({"doc_to_text": "utils.ask"}, {"doc_to_text": "utils.ask", "code": CODE.replace("Q: ", "Question: ")}),
        ({"process_docs": "utils.keep_all"}, {"process_docs": "utils.keep_all", "code": CODE.replace("Q: ", "Qu: ")}),
        ({"doc_to_choice": {"a": "x", "b": "y"}}, {"doc_to_choice": {"b": "y", "a": "x"}}),
    ],
    ids=["partial", "closure", "code", "code behind a cache", "order of choices"],
)
def test_tasks_that_differ_in_what_a_function_does_are_two(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    choice = {"output_type": "multiple_choice", "doc_to_target": "0", "doc_to_choice": ["x", "y"]}
    choice |= {"generation_kwargs": None, "metric_list": [{"metric": "acc"}]}

    fingerprints = [
        quiz_fingerprint(tmp_path / "one", **choice | one),
        quiz_fingerprint(tmp_path / "again", **choice | one),
        quiz_fingerprint(tmp_path / "other", **choice | other),
    ]

    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


def test_module_beside_a_function_is_part_of_the_task(tmp_path: Path) -> None:
    first = quiz_fingerprint(tmp_path, doc_to_text="utils.ask")
    (tmp_path / "helper.py").write_text("word = 'Q'\n")

    assert task_fingerprint(load_quiz(tmp_path)) != first


def test_task_of_a_class_is_known_by_its_code_and_documents(tmp_path: Path) -> None:
    code = """
from lm_eval.api.task import ConfigurableTask

class Quiz(ConfigurableTask):
    VERSION = 1
    DATASET_PATH = "json"

    def __init__(self, config):
        settings = ("output_type", "dataset_path", "dataset_kwargs", "doc_to_text", "doc_to_target")
        super().__init__(config={key: config[key] for key in settings})

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset["test"]
"""
    fields = {"class": "utils.Quiz", "code": code}

    first = quiz_fingerprint(tmp_path / "first", **fields)
    again = quiz_fingerprint(tmp_path / "again", **fields)
    later = quiz_fingerprint(tmp_path / "later", **fields | {"code": code.replace("VERSION = 1", "VERSION = 2")})
    shorter = quiz_fingerprint(tmp_path / "shorter", **fields, rows=QUESTIONS[:-1])

    assert first == again
    assert len({first, later, shorter}) == 3


def test_holdout_is_known_by_its_rows(kit: Any, tmp_path: Path) -> None:
    tokenizer = kit.byte_tokenizer()
    rows = [([5, 6, 7, number], [-100, -100, 7, number]) for number in (8, 9)]

    fingerprints = [
        task_fingerprint(HoldoutTask(read_holdout(kit.write_holdout(path, some), vocabulary_size=259), tokenizer))
        for path, some in (
            (tmp_path / "a.parquet", rows),
            (tmp_path / "b.parquet", rows),
            (tmp_path / "c.parquet", rows[:1]),
        )
    ]

    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


FEATURES = datasets.Features(
    {
        "question": datasets.Value("string"),
        "choices": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("int64"),
        "is_hard": datasets.Value("bool"),
        "source": {"weight": datasets.Value("float64"), "pages": datasets.List(datasets.Value("int32"))},
    }
)
# Columns in one order: what order they have may matter to a function, so it counts.
row = st.fixed_dictionaries(
    {
        "question": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
        "choices": st.none() | st.lists(st.none() | st.sampled_from(["", "a", "bb"]), max_size=3),
        "answer": st.none() | st.integers(0, 3),
        "is_hard": st.none() | st.booleans(),
        "source": st.fixed_dictionaries(
            {"weight": st.none() | st.floats(0, 1), "pages": st.lists(st.integers(0, 9), max_size=2)}
        ),
    }
).map(lambda fields: {name: fields[name] for name in FEATURES})


@pytest.fixture(scope="module")
def loaded_quiz(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_quiz(write_quiz(tmp_path_factory.mktemp("loaded"), fewshot_split=None))


def fingerprint_of_rows(task: Any, rows: datasets.Dataset) -> str:
    task.dataset = {"test": rows}
    return task_fingerprint(task)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(row, min_size=2, max_size=9), data=st.data())
def test_rows_are_the_same_however_they_are_stored(loaded_quiz: Task, rows: list[dict], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(rows) - 1))
    whole = datasets.Dataset.from_list(rows, features=FEATURES)
    pieces = [datasets.Dataset.from_list(part, features=FEATURES) for part in (rows[:cut], rows[cut:])]
    backwards = range(len(rows) - 1, -1, -1)
    stored = [
        datasets.concatenate_datasets(pieces),
        whole.select(backwards).select(backwards),
        datasets.Dataset.from_list(rows[-3:] + rows, features=FEATURES).skip(len(rows[-3:])),
    ]

    fingerprints = {fingerprint_of_rows(loaded_quiz, one) for one in (whole, *stored)}

    assert len(fingerprints) == 1


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=5), others=st.lists(row, min_size=1, max_size=5))
def test_other_rows_are_another_task(loaded_quiz: Task, rows: list[dict], others: list[dict]) -> None:
    one, other = (datasets.Dataset.from_list(some, features=FEATURES) for some in (rows, others))

    is_same = fingerprint_of_rows(loaded_quiz, one) == fingerprint_of_rows(loaded_quiz, other)

    assert is_same == (rows == others)


def test_copied_model_is_the_same(tmp_path: Path, base_model: Path) -> None:
    shutil.copytree(base_model, tmp_path / "copy")

    assert model_fingerprint(tmp_path / "copy", memo=None) == model_fingerprint(base_model, memo=None)


def test_model_is_the_same_with_a_memo(tmp_path: Path, base_model: Path) -> None:
    fingerprints = {model_fingerprint(base_model, memo=memo) for memo in (None, tmp_path, tmp_path)}

    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_model_with_a_changed_file_is_another(tmp_path: Path, base_model: Path, name: str) -> None:
    copy = shutil.copytree(base_model, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)

    assert model_fingerprint(copy, memo=None) != model_fingerprint(base_model, memo=None)


def test_model_without_its_template_is_another(tmp_path: Path, base_model: Path) -> None:
    copy = shutil.copytree(base_model, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()

    assert model_fingerprint(copy, memo=None) != model_fingerprint(base_model, memo=None)


def test_files_that_are_no_part_of_the_model_do_not_count(tmp_path: Path, base_model: Path) -> None:
    copy = shutil.copytree(base_model, tmp_path / "copy")
    for name in ("manifest.json", "lineage.json", "README.md"):
        (copy / name).write_text("promoted")

    assert model_fingerprint(copy, memo=None) == model_fingerprint(base_model, memo=None)


def test_model_whose_weights_are_gone_from_the_hubs_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")

    with pytest.raises(EvaluationError, match="model.safetensors: the file cannot be read"):
        model_fingerprint(tmp_path, memo=None)
