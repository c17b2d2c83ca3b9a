from typing import Any

import pytest

from osft.errors import ConfigError
from osft.evaluation.config import EvaluationConfig


def test_lists_and_text_paths_are_taken_as_tuples_and_paths() -> None:
    config = EvaluationConfig(base="a", tuned="b", tasks=["x"], include_path="tasks")  # type: ignore[arg-type]

    assert config.tasks == ("x",)
    assert config.include_path is not None
    assert config.include_path.name == "tasks"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": "mmlu"}, "tasks is 'mmlu'. Give a tuple"),
        ({"tasks": ("a", " ")}, "tasks holds ' '"),
        ({"base": ""}, "both models must be named"),
        ({"target_tasks": ("a",)}, "name a more than once"),
        ({"tasks": ("holdout",), "holdout": "rows"}, "'holdout' is the name of the held-out rows"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 0.5}, "limit is 0.5"),
        ({"batch_size": "large"}, "batch_size is 'large'"),
        ({"batch_size": None}, "batch_size is None"),
        ({"max_forgetting": 5}, "max_forgetting is 5"),
        ({"max_forgetting": float("nan")}, "max_forgetting is nan"),
        ({"min_target_gain": 2}, "min_target_gain is 2"),
        ({"min_target_gain": 0.1}, "nothing measures the gain"),
    ],
)
def test_value_that_is_not_allowed_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**{"base": "a", "tuned": "b", "tasks": ("a",)} | fields)
