"""What every test may use: a real model small enough to train in a second, and its tokenizer."""

import os
import socket

# Before transformers or datasets are imported: a test that would reach for a hub fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Models this small gain nothing from more threads, and on a busy machine the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

# How long an example takes is the machine's business, and it may be busy.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

# Where the processes of a test come from: forked from one that has imported, once, what they train with.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["osft.training.loop"])

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of two processes none is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Qwen3 of random weights, grouped-query attention, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # The default of 0.02 leaves logits so small that a frozen head could not express what is learnt.
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def short_training(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the parameters of ``osft()`` for a training of a second or two."""
    return {
        "model_path": str(model),
        "data_path": str(data),
        "ckpt_output_dir": str(output),
        "unfreeze_rank_ratio": 0.5,
        "effective_batch_size": 4,
        "max_tokens_per_gpu": 256,
        "max_seq_len": 128,
        "learning_rate": 5e-3,
        **changes,
    }


def find_free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def join_run(rank: int, world_size: int, port: int) -> None:
    """Give this process the environment that torchrun gives one of ``world_size`` on this machine."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def run_together(work: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call ``work(rank, port, *arguments)`` in ``world_size`` processes, and raise what one of them raises."""
    mp.start_processes(work, (find_free_port(), *arguments), nprocs=world_size, start_method="forkserver")


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def write_messages(path: Path) -> Path:
    """Write a JSONL file of eight short conversations."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You add."},
                {"role": "user", "content": f"{number} plus 1?"},
                {"role": "assistant", "content": str(number + 1)},
            ]
        }
        for number in range(8)
    ]
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return path


@pytest.fixture
def messages_file(tmp_path: Path) -> Path:
    return write_messages(tmp_path / "messages.jsonl")


PARITY_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {name}.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


@pytest.fixture(scope="session")
def write_parity_task() -> Callable[[Path, str], None]:
    """Write a small multiple-choice task of a name of its own: its YAML and six questions beside it."""

    def write(folder: Path, name: str) -> None:
        rows = [{"question": f"Is {number} {name}?", "answer": number % 2} for number in range(6)]
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        (folder / f"{name}.yaml").write_text(PARITY_TASK.format(name=name))

    return write
