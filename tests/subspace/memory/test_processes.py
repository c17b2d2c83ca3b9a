"""Several processes remember what one does, and sample as one text what each of them says."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from osft.config import TrainingConfig
from osft.subspace.memory.memory import GroupMemory, SubspaceMemory
from osft.subspace.memory.merging import reconstruct
from osft.training.loop import train
from tests.conftest import join_run, make_tokenizer, run_together

WORLD_SIZES = (1, 2)


def config_of(folder: Path, world_size: int, link: str, **options: Any) -> TrainingConfig:
    return TrainingConfig(
        model_path=str(folder / "base"),
        data_path=str(folder / "data.jsonl"),
        use_processed_dataset=True,
        ckpt_output_dir=str(folder / f"{world_size} processes" / link),
        unfreeze_rank_ratio=0.25,
        effective_batch_size=4,
        max_tokens_per_gpu=64,
        max_seq_len=40,
        learning_rate=1e-3,
        num_epochs=2,
        remember=True,
        **options,
    )


def train_chain(folder: Path, world_size: int) -> None:
    """Train two links from a text, and one from the model's own samples."""
    text = str(folder / "text.jsonl")
    train(config_of(folder, world_size, "first", calibration=text))
    memory = str(folder / f"{world_size} processes" / "first" / "memory")
    train(config_of(folder, world_size, "second", subspace_memory=memory))
    train(config_of(folder, world_size, "sampled", base_memory="samples"))


def join_chain(local_rank: int, port: int, folder: Path) -> None:
    """Run in a process of its own."""
    join_run(local_rank, 2, port)
    train_chain(folder, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process and two have trained a chain."""
    folder = tmp_path_factory.mktemp("chain")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=77, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    generator = np.random.default_rng(0)
    for name in ("data.jsonl", "text.jsonl"):
        with (folder / name).open("wb") as file:
            for length in (5, 17, 9, 30, 12, 7, 21, 40):
                ids = generator.integers(3, len(tokenizer), length).tolist()
                file.write(orjson.dumps({"input_ids": ids, "labels": ids}, option=orjson.OPT_APPEND_NEWLINE))
    train_chain(folder, 1)
    run_together(join_chain, 2, folder)
    return folder


def memories(folder: Path, link: str) -> list[SubspaceMemory]:
    return [SubspaceMemory.load(folder / f"{world_size} processes" / link / "memory") for world_size in WORLD_SIZES]


def rebuilt(group: GroupMemory) -> torch.Tensor:
    return reconstruct(group, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("link", ["first", "second"])
def test_two_processes_remember_what_one_does(trained: Path, link: str) -> None:
    one, two = memories(trained, link)

    assert (one.tasks, one.tokens) == (two.tasks, two.tokens)
    assert [group.targets for group in one.groups] == [group.targets for group in two.groups]
    for alone, together in zip(one.groups, two.groups, strict=True):
        # Trained weights that differ by rounding, and directions rounded to bfloat16.
        assert (rebuilt(alone) - rebuilt(together)).norm() < 0.01 * rebuilt(alone).norm()


@pytest.mark.slow
def test_each_process_samples_its_share_and_all_measure_all_of_it(trained: Path) -> None:
    one, two = memories(trained, "sampled")

    assert one.tasks == two.tasks == 2
    # As many texts, of about one length; other ones, since each process has a generator of its own.
    assert two.tokens == pytest.approx(one.tokens, rel=0.1)
    assert two.tokens != one.tokens
    for alone, together in zip(one.groups, two.groups, strict=True):
        assert (rebuilt(alone) - rebuilt(together)).norm() < 0.2 * rebuilt(alone).norm()


@pytest.mark.slow
def test_nothing_is_left_but_the_memory(trained: Path) -> None:
    for link in ("first", "sampled"):
        left = {path.name for path in (trained / "2 processes" / link).iterdir()}

        assert left == {"final", "memory", "metrics.jsonl", "loss.html", "training.json"}
