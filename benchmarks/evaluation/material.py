"""The models and tasks that ``benchmarks/evaluation/`` measures with: made here, the same each time.

The models have random weights, which take as long as trained ones. The tasks have the shapes of common ones: a choice
between phrases (as hellaswag), short texts to generate, a group of many small tasks with answers of one letter (as
mmlu), and one like it with the size and the prompts of mmlu. Words and tokenizer are those of the data benchmark.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks.data.rows import SEED, ZIPF_EXPONENT, make_words, write_tokenizer
from osft.workspace import atomic_file

logger = logging.getLogger("osft.benchmarks")

# Part of the folder's name: what an earlier kind left there is not taken.
VERSION = 1
LETTERS = "ABCD"
HEAD_SIZE = 64
GENERATED_TOKENS = 12
# Examples make up most of a prompt of mmlu and are the same in all of a subject's; they count 2,500 of 3,000 bytes.
DESCRIPTION_WORDS, KNOWN_WORDS = 480, 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large models and tasks are."""

    hidden_size: int
    timed_layers: int
    """Layers of the model that is run beside plain lm-eval."""

    large_layers: int
    """Layers of the models whose memory, or whose hash, counts."""

    choice_documents: int
    generation_documents: int
    small_tasks: int
    small_documents: int
    """Documents of each small task."""

    known_tasks: int
    known_documents: int
    """Documents of each task of the model that is known."""


SCALES = {
    # 25 million parameters, and 430 MB; 57 tasks of 246 documents are 14,022, as mmlu has.
    "full": Scale(
        hidden_size=768,
        timed_layers=3,
        large_layers=16,
        choice_documents=64,
        generation_documents=24,
        small_tasks=20,
        small_documents=64,
        known_tasks=57,
        known_documents=246,
    ),
    "smoke": Scale(
        hidden_size=64,
        timed_layers=1,
        large_layers=2,
        choice_documents=4,
        generation_documents=2,
        small_tasks=2,
        small_documents=3,
        known_tasks=3,
        known_documents=4,
    ),
}


@dataclass(frozen=True, slots=True)
class Material:
    """A folder of models and tasks."""

    root: Path

    @property
    def timed_model(self) -> Path:
        """Folder of the model that is run beside plain lm-eval."""
        return self.root / "timed"

    @property
    def base(self) -> Path:
        """Folder of a large model."""
        return self.root / "base"

    @property
    def tuned(self) -> Path:
        """Folder of another one of the same shape."""
        return self.root / "tuned"

    @property
    def tasks(self) -> Path:
        """Folder of the YAML tasks: ``choices``, ``generation``, the groups ``subjects`` and ``known``."""
        return self.root / "tasks"

    @property
    def datasets_cache(self) -> Path:
        """Where the tasks' data are kept once they are read."""
        return self.root / "datasets"


def write_material(workdir: Path, scale_name: str) -> Material:
    """Return the models and tasks of :data:`SCALES`, made in ``workdir`` unless they are there already."""
    scale, material = SCALES[scale_name], Material(workdir / f"{scale_name}-{VERSION}")
    tokenizer = write_tokenizer(workdir)
    write_model(material.timed_model, tokenizer, scale.hidden_size, scale.timed_layers, seed=0)
    write_model(material.base, tokenizer, scale.hidden_size, scale.large_layers, seed=1)
    write_model(material.tuned, tokenizer, scale.hidden_size, scale.large_layers, seed=2)
    write_tasks(material.tasks, scale)
    return material


def write_model(folder: Path, tokenizer_folder: Path, hidden_size: int, num_layers: int, *, seed: int) -> None:
    """Write a random Qwen3 in float32 with its tokenizer, unless it is there already."""
    if (folder / "tokenizer.json").exists():
        return
    logger.info("writing model %s", folder.name)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // HEAD_SIZE,
            num_key_value_heads=max(1, hidden_size // HEAD_SIZE // 3),
            head_dim=HEAD_SIZE,
            max_position_embeddings=2_048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    # Last: with it the folder is whole.
    tokenizer.save_pretrained(folder)


def write_tasks(folder: Path, scale: Scale) -> None:
    """Write all tasks and groups, unless they are there already: data of a new date are not taken from a cache."""
    if (folder / "known.yaml").exists():
        return
    logger.info("writing tasks")
    writer = TaskWriter(folder)
    writer.write_choices("choices", scale.choice_documents)
    writer.write_generation("generation", scale.generation_documents)
    subjects = [f"subject_{number:02d}" for number in range(scale.small_tasks)]
    for name in subjects:
        writer.write_subject(name, scale.small_documents)
    writer.write_group("subjects", subjects)
    known = [f"known_{number:02d}" for number in range(scale.known_tasks)]
    for name in known:
        description = f"{writer.draw_text(DESCRIPTION_WORDS)}\n\n"
        writer.write_subject(name, scale.known_documents, words=KNOWN_WORDS, description=description)
    # Last: with it the folder is whole.
    writer.write_group("known", known)


class TaskWriter:
    """Draws questions and writes them as lm-eval tasks into one folder."""

    def __init__(self, folder: Path) -> None:
        """Lay out the words."""
        self._folder = folder
        self._draw = np.random.default_rng(SEED)
        self._words = np.array(make_words(), dtype=object)
        shares = np.arange(1, len(self._words) + 1) ** ZIPF_EXPONENT
        self._cumulated_shares = np.cumsum(shares) / shares.sum()

    def draw_text(self, words: int) -> str:
        """Return a text of so many words."""
        places = np.searchsorted(self._cumulated_shares, self._draw.random(words)).clip(max=len(self._words) - 1)
        return " ".join(self._words[places])

    def write_choices(self, name: str, documents: int) -> None:
        """Write a task that chooses between four phrases."""
        rows = [
            {
                "question": self.draw_text(int(self._draw.integers(6, 20))),
                "choices": [self.draw_text(int(self._draw.integers(3, 9))) for _ in LETTERS],
                "gold": int(self._draw.integers(len(LETTERS))),
            }
            for _ in range(documents)
        ]
        metrics = [_mean("acc"), _mean("acc_norm")]
        fields = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
        self._write(name, rows, output_type="multiple_choice", metric_list=metrics, **fields)

    def write_generation(self, name: str, documents: int) -> None:
        """Write a task whose answers are generated; a random model hardly ever ends one early."""
        rows = [
            {"question": self.draw_text(int(self._draw.integers(20, 50))), "answer": self.draw_text(4)}
            for _ in range(documents)
        ]
        settings = {"until": ["<|im_end|>"], "max_gen_toks": GENERATED_TOKENS, "do_sample": False}
        fields = {"doc_to_text": "{{question}}", "doc_to_target": "answer", "generation_kwargs": settings}
        self._write(name, rows, output_type="generate_until", metric_list=[_mean("exact_match")], **fields)

    def write_subject(self, name: str, documents: int, *, words: int | None = None, description: str = "") -> None:
        """Write a task whose answers are letters; its questions have ``words`` words, or 6 to 23."""
        rows = [
            {
                "question": self.draw_text(words or int(self._draw.integers(6, 24))),
                "gold": int(self._draw.integers(len(LETTERS))),
            }
            for _ in range(documents)
        ]
        fields = {"doc_to_text": "{{question}}\nAnswer:", "doc_to_choice": list(LETTERS), "doc_to_target": "gold"}
        metrics = [_mean("acc")]
        self._write(name, rows, output_type="multiple_choice", metric_list=metrics, description=description, **fields)

    def write_group(self, name: str, members: list[str]) -> None:
        """Write a group that is scored as one, over all documents alike."""
        metric = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
        self._dump(name, {"group": name, "task": members, "aggregate_metric_list": [metric]})

    def _write(self, name: str, rows: Iterable[Mapping[str, Any]], **fields: Any) -> None:
        with atomic_file(self._folder / f"{name}.jsonl") as file:
            for row in rows:
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            "metadata": {"version": 1.0},
        }
        self._dump(name, task | fields)

    def _dump(self, name: str, content: Mapping[str, Any]) -> None:
        with atomic_file(self._folder / f"{name}.yaml", "w") as file:
            yaml.safe_dump(dict(content), file)


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
