from pathlib import Path
from typing import Any

import pytest

from osft.errors import ConfigError
from osft.evaluation.config import EvaluationConfig


def test_lists_and_text_paths_are_taken_as_tuples_and_paths() -> None:
    config = EvaluationConfig(tasks=["x"], include_path="tasks")  # type: ignore[arg-type]

    assert config.tasks == ("x",)
    assert config.include_path is not None
    assert config.include_path.name == "tasks"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": "mmlu"}, "tasks is 'mmlu'. Give a tuple"),
        ({"tasks": ("a", " ")}, "tasks holds ' '"),
        ({"target_tasks": ("a",)}, "name a more than once"),
        ({"tasks": ("holdout",), "holdout": "rows"}, "'holdout' is the name of the held-out rows"),
        ({"earlier_holdouts": {"a": "rows"}}, "'a' is the name of the held-out rows"),
        ({"max_cumulative_forgetting": 1.5}, "max_cumulative_forgetting is 1.5"),
        ({"earlier_holdouts": {"h": "x"}, "task_limits": {"b": 0.1}}, "names 'b', which is not in tasks: a, h"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 0.5}, "limit is 0.5"),
        ({"batch_size": "large"}, "batch_size is 'large'"),
        ({"batch_size": None}, "batch_size is None"),
        ({"max_forgetting": 5}, "max_forgetting is 5"),
        ({"max_forgetting": float("nan")}, "max_forgetting is nan"),
        ({"min_target_gain": 2}, "min_target_gain is 2"),
        ({"min_target_gain": 0.1}, "nothing measures the gain"),
        ({"task_limits": {"a": 2}}, "task_limits gives 'a' the limit 2"),
        ({"task_limits": {"a": True}}, "task_limits gives 'a' the limit True"),
        ({"task_limits": {"b": 0.1}}, "task_limits names 'b', which is not in tasks: a"),
        ({"backend": "tgi"}, "backend is 'tgi'. Give one of hf, vllm, openai"),
        ({"backend": "openai"}, "backend 'openai' with base_url 'None'"),
        ({"base_url": "http://localhost/v1/completions"}, "Give base_url with backend openai, and only there"),
        (
            {"backend": "openai", "base_url": "http://me:secret@localhost/v1/completions"},
            "base_url holds a user's name or password",
        ),
        ({"backend": "vllm", "probe": "text.txt"}, "probe needs all logits, which backend 'vllm' does not give"),
        (
            {"backend": "openai", "base_url": "http://localhost/v1/completions", "batch_size": "auto"},
            "batch_size is 'auto', which a server has no answer to",
        ),
    ],
)
def test_value_that_is_not_allowed_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**{"tasks": ("a",)} | fields)


def test_numbers_of_generation_settings_have_the_types_that_transformers_wants() -> None:
    given = {"max_gen_toks": 128.0, "temperature": 2, "top_p": 0.5, "do_sample": True, "until": ["x"], "top_k": 5}

    config = EvaluationConfig(tasks=("a",), generation=given)

    assert config.generation == given
    assert isinstance(config.generation["max_gen_toks"], int)
    assert isinstance(config.generation["temperature"], float)
    assert config.generation["do_sample"] is True


@pytest.mark.parametrize(
    ("fields", "has_chain"),
    [
        ({}, False),
        ({"base_version": "v0001", "ancestor_measurements": {"v0001": "x"}}, False),
        ({"base_version": "v0001", "ancestor_measurements": {"v0000": "x", "v0001": "y"}}, True),
        ({"origin": "the/model"}, True),
    ],
)
def test_there_is_a_chain_where_something_is_before_the_base(fields: dict[str, Any], *, has_chain: bool) -> None:
    config = EvaluationConfig(tasks=("a",), **fields)

    assert config.has_chain == has_chain


def test_limit_of_a_task_may_be_of_rows_that_an_earlier_version_held_out() -> None:
    config = EvaluationConfig(
        tasks=("a",), earlier_holdouts={"holdout_v0001": "rows"}, task_limits={"holdout_v0001": 0.1}
    )

    assert config.earlier_holdouts == {"holdout_v0001": Path("rows")}
