import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osft.errors import ConfigError, EvaluationError, MissingPathError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.holdout import HoldoutRow, HoldoutTask
from osft.evaluation.task_index import CACHE_NAME
from osft.evaluation.tasks import check_no_overlap, load_tasks, resolve_data_files
from osft.workspace import write_json


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A cache with an index of a few of lm-eval's own tasks: reading all of them takes seconds."""
    tasks = {"arc_easy": "arc/arc_easy.yaml", "ifeval": "ifeval/ifeval.yaml"}
    write_json(
        tmp_path / "cache" / CACHE_NAME / f"lm-eval-{importlib.metadata.version('lm-eval')}.json",
        {name: ("TASK", path, []) for name, path in tasks.items()},
    )
    return tmp_path / "cache"


def task_config(tasks: tuple[str, ...], include_path: Path | None) -> EvaluationConfig:
    return EvaluationConfig(tasks=tasks, include_path=include_path)


def test_names_are_loaded_in_their_order_with_their_kind(kit: Any, tmp_path: Path) -> None:
    for name in ("new", "old"):
        kit.write_prose_task(tmp_path, name)

    requested = load_tasks(EvaluationConfig(tasks=("old",), target_tasks=("new",), include_path=tmp_path))

    assert [(one.name, one.asked_as, one.kind, one.leaves) for one in requested] == [
        ("old", "old", "retention", ("old",)),
        ("new", "new", "target", ("new",)),
    ]


def test_unknown_task_is_answered_with_near_matches(kit: Any, tmp_path: Path, index: Path) -> None:
    kit.write_prose_task(tmp_path / "tasks", "letters")

    with pytest.raises(EvaluationError, match=r"task 'lettters' is not known to lm-eval and .*tasks. Did you mean let"):
        load_tasks(task_config(("lettters",), tmp_path / "tasks"), cache=index)


def test_unknown_task_of_lm_eval_is_answered_with_near_matches(index: Path) -> None:
    with pytest.raises(EvaluationError, match=r"task 'arc_esay' is not known to lm-eval. Did you mean arc_easy"):
        load_tasks(task_config(("arc_esay",), None), cache=index)


def test_unknown_task_without_near_match_says_what_to_do(index: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"task 'qqq' is not known to lm-eval. Check the spelling, or give include"
    ):
        load_tasks(task_config(("qqq",), None), cache=index)


def test_task_in_a_yaml_that_cannot_be_read_is_unknown_for_that_reason(tmp_path: Path, index: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "letters.yaml").write_text("task: letters\ndoc_to_text: [")

    with pytest.raises(
        EvaluationError, match=r"task 'letters' is not known .*letters.yaml cannot be read: while parsing"
    ):
        load_tasks(task_config(("letters",), tmp_path / "tasks"), cache=index)


def test_function_that_is_missing_is_named_with_the_yaml(kit: Any, tmp_path: Path) -> None:
    kit.write_prose_task(tmp_path, "letters")
    (tmp_path / "letters.yaml").write_text(
        (tmp_path / "letters.yaml").read_text() + "process_docs: !function utils.process\n"
    )

    with pytest.raises(EvaluationError, match=r"letters.yaml: the task cannot be read .*'utils'"):
        load_tasks(task_config(("letters",), tmp_path))


def test_task_that_two_names_contain_is_an_error(kit: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        kit.write_prose_task(tmp_path, name)
    kit.write_group(tmp_path, "both", ["one", "two"])

    with pytest.raises(ConfigError, match="'both' and 'one' both contain 'one'"):
        load_tasks(task_config(("both", "one"), tmp_path))


@pytest.mark.parametrize("name", ["holdout", "holdout_v0001"])
def test_task_with_the_name_of_held_out_rows_is_to_be_renamed(kit: Any, tmp_path: Path, name: str) -> None:
    kit.write_prose_task(tmp_path, name)
    kit.write_group(tmp_path, "group", [name])
    (group,) = load_tasks(task_config(("group",), tmp_path))
    row = HoldoutRow(row=1, input_ids=np.array([1, 2, 3], dtype=np.int32), turns=((1, 3),), is_plain_text=False)
    held_out = replace(group, name=name, item=HoldoutTask([row], kit.byte_tokenizer(), name=name))

    with pytest.raises(ConfigError, match=f"'group' and '{name}' both contain '{name}'.* rename the task in its YAML"):
        check_no_overlap([group, held_out])


def test_task_in_two_subgroups_is_there_once(kit: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        kit.write_prose_task(tmp_path, name)
    kit.write_group(tmp_path, "first", ["one", "two"])
    kit.write_group(tmp_path, "second", ["two"])
    kit.write_group(tmp_path, "all", ["first", "second"])

    (requested,) = load_tasks(task_config(("all",), tmp_path))

    assert requested.leaves == ("one", "two")


CODE = """
def none(dataset):
    return dataset.filter(lambda doc: False)

def same(dataset):
    return dataset
"""


def add_process_docs(folder: Path, name: str, function: str) -> None:
    (folder / "utils.py").write_text(CODE)
    with (folder / f"{name}.yaml").open("a") as file:
        file.write(f"process_docs: !function utils.{function}\n")


def test_task_whose_documents_are_all_taken_away_is_named_with_its_split(kit: Any, tmp_path: Path) -> None:
    for name in ("full", "empty"):
        kit.write_prose_task(tmp_path, name)
    add_process_docs(tmp_path, "empty", "none")
    kit.write_group(tmp_path, "group", ["full", "empty"])

    with pytest.raises(EvaluationError, match="^task 'empty' has no documents in split 'test' after process_docs"):
        load_tasks(task_config(("group",), tmp_path))


def test_loss_without_direction_is_refused_before_anything_is_measured(
    kit: Any, tmp_path: Path, base_oracle: Any
) -> None:
    metric = {"metric": "loss", "aggregation": "mean"}
    kit.write_letters_task(tmp_path, "letters", base_oracle, metric_list=[metric])
    (tmp_path / "utils.py").write_text("def loss(doc, results):\n    return {'loss': 1.0}\n")
    with (tmp_path / "letters.yaml").open("a") as file:
        file.write("process_results: !function utils.loss\n")

    with pytest.raises(EvaluationError, match="task 'letters': nothing says whether a higher loss is better"):
        load_tasks(task_config(("letters",), tmp_path))


def test_folder_counts_for_tasks_with_functions_only(kit: Any, tmp_path: Path) -> None:
    for name in ("plain", "own", "member"):
        kit.write_prose_task(tmp_path, name)
    for name in ("own", "member"):
        add_process_docs(tmp_path, name, "same")
    kit.write_group(tmp_path, "group", ["member"])

    plain, own, group = load_tasks(task_config(("plain", "own", "group"), tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "key.json").write_text("{}")
    _, changed, _ = load_tasks(task_config(("plain", "own", "group"), tmp_path))

    assert plain.include_path_sha256 is None
    assert own.include_path_sha256 == group.include_path_sha256 is not None
    assert changed.include_path_sha256 != own.include_path_sha256


def test_task_whose_file_is_missing_is_named(kit: Any, tmp_path: Path) -> None:
    kit.write_prose_task(tmp_path, "prose")
    (tmp_path / "prose.jsonl").unlink()

    with pytest.raises(EvaluationError, match="task 'prose' cannot be loaded: FileNotFoundError"):
        load_tasks(task_config(("prose",), tmp_path))


def test_task_whose_data_set_is_not_in_the_cache_says_so_offline(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)

    with pytest.raises(
        EvaluationError,
        match=r"^task 'arc_easy': its data set is not in the cache .* cannot be fetched: .*'allenai/ai2_arc' "
        r".*\. Load the task once where there is a network, with the same HF_HOME",
    ):
        load_tasks(task_config(("arc_easy",), None), cache=index)


def test_task_that_needs_a_missing_package_names_it(kit: Any, tmp_path: Path) -> None:
    kit.write_prose_task(tmp_path, "prose")
    (tmp_path / "utils.py").write_text("def process(docs):\n    import no_such_package\n")
    (tmp_path / "prose.yaml").write_text(
        (tmp_path / "prose.yaml").read_text() + "process_docs: !function utils.process\n"
    )

    with pytest.raises(EvaluationError, match="task 'prose' needs a package .* 'no_such_package'. Install it"):
        load_tasks(task_config(("prose",), tmp_path))


def test_missing_include_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="include_path '.*nowhere' is no folder"):
        load_tasks(task_config(("letters",), tmp_path / "nowhere"))


def test_tag_stands_for_each_of_its_tasks(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    for name in ("one", "two"):
        kit.write_letters_task(tmp_path, name, base_oracle, tag="letter_tasks")

    requested = load_tasks(task_config(("letter_tasks",), tmp_path))

    assert [(one.name, one.asked_as, one.leaves) for one in requested] == [
        ("one", "letter_tasks", ("one",)),
        ("two", "letter_tasks", ("two",)),
    ]


@pytest.mark.parametrize(
    ("fields", "pools"), [({}, True), ({"weight_by_size": False}, False), ({"metric": "f1"}, False)]
)
def test_group_is_one_score_where_lm_eval_says_so(
    kit: Any, tmp_path: Path, fields: dict[str, Any], pools: bool
) -> None:
    kit.write_prose_task(tmp_path, "one")
    kit.write_group(tmp_path, "group", ["one"], **fields)

    (requested,) = load_tasks(task_config(("group",), tmp_path))

    assert requested.pools("acc") is pools


def test_shots_and_generation_settings_are_the_users(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    kit.write_copy_task(tmp_path, "copies", base_oracle)
    config = EvaluationConfig(
        tasks=("copies",), include_path=tmp_path, num_fewshot=2, generation={"max_gen_toks": 9, "temperature": 0.0}
    )

    (task,) = load_tasks(config)[0].tasks

    assert task.get_config("num_fewshot") == 2
    assert task.get_config("generation_kwargs") == {
        "until": ["<|im_end|>"],
        "max_gen_toks": 9,
        "do_sample": False,
        "temperature": 0.0,
    }


def test_task_that_has_no_shots_on_purpose_keeps_none(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    kit.write_letters_task(tmp_path, "letters", base_oracle, num_fewshot=0)

    (requested,) = load_tasks(EvaluationConfig(tasks=("letters",), include_path=tmp_path, num_fewshot=2))

    assert requested.tasks[0].get_config("num_fewshot") == 0


def test_data_files_are_taken_relative_to_the_yaml(tmp_path: Path) -> None:
    files = {"test": ["a.jsonl", "/abs/b.jsonl"], "train": "https://host/c.jsonl"}
    content = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "field": "data"}}

    resolved = resolve_data_files(content, tmp_path)

    assert resolved["dataset_kwargs"] == {
        "data_files": {"test": [str(tmp_path / "a.jsonl"), "/abs/b.jsonl"], "train": "https://host/c.jsonl"},
        "field": "data",
    }
    assert content["dataset_kwargs"]["data_files"] == files


def test_data_files_of_members_of_a_group_are_taken_relative_to_the_yaml(tmp_path: Path) -> None:
    member = {"task": "one", "dataset_kwargs": {"data_files": "one.jsonl"}}

    resolved = resolve_data_files({"group": "all", "dataset_path": "json", "task": ["other", member]}, tmp_path)

    assert resolved["task"] == ["other", {"task": "one", "dataset_kwargs": {"data_files": str(tmp_path / "one.jsonl")}}]


def test_data_files_in_a_repository_on_the_hub_are_left_alone(tmp_path: Path) -> None:
    content = {"dataset_path": "owner/name", "dataset_kwargs": {"data_files": "test.jsonl"}}

    assert resolve_data_files(content, tmp_path) == content
