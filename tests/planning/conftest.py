"""A small model of which every part of a plan can be seen, as a configuration and as a folder with weights."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig

from osft.planning.memory_plan import MemoryPlan
from osft.planning.table import render_plan


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with a configuration and no weights."""
    folder = tmp_path / "model"
    make_model_config().save_pretrained(folder)
    return folder


def make_model_config(**changes: int) -> LlamaConfig:
    shape = {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 768, "vocab_size": 2000,
    }  # fmt: skip
    return LlamaConfig(**shape | changes, tie_word_embeddings=False, dtype=torch.bfloat16)


def printed(plan: MemoryPlan) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(render_plan(plan))
    return console.export_text()
