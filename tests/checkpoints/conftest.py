"""A small run to interrupt: its data and its parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest


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
        return {
            "model_path": str(tiny_model),
            "data_path": str(processed_file),
            "ckpt_output_dir": str(tmp_path / folder),
            "use_processed_dataset": True,
            "unfreeze_rank_ratio": 0.5,
            "effective_batch_size": 4,
            "max_tokens_per_gpu": 256,
            "max_seq_len": 128,
            "learning_rate": 5e-3,
            "num_epochs": 4,
            "nproc_per_node": 1,
            **changes,
        }

    return parameters
