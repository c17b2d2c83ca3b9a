"""A small run to interrupt: its data and its parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.conftest import short_training


@pytest.fixture(scope="session")
def processed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows of token ids, of several lengths, as JSON lines."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("processed") / "processed.jsonl"
    with path.open("wb") as file:
        for length in (5, 17, 9, 30, 12, 7, 21):
            ids = generator.integers(3, 200, length).tolist()
            row = {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


@pytest.fixture
def call(tiny_model: Path, processed_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return the parameters of ``osft()`` for eight steps, two an epoch, into a folder of ``tmp_path``."""

    def parameters(folder: str, **changes: Any) -> dict[str, Any]:
        steps = {"use_processed_dataset": True, "num_epochs": 4, "nproc_per_node": 1}
        return short_training(tiny_model, processed_file, tmp_path / folder, **{**steps, **changes})

    return parameters
