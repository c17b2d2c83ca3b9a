"""A tiny real model, its tokenizer, and tasks whose right answers are what that model says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHOICES = tuple("abcdefghijklmnop")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def save_model(folder: Path, *, seed: int = 0, vocab_size: int = 259, damage: float = 0.0) -> Path:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    if damage:
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += damage * torch.randn_like(parameter)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


class Oracle:
    """What a model says, by plain transformers, to check the harness against."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0]

    def prompt_ids(self, question: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer.encode(text)

    def choice(self, question: str) -> int:
        scores = self.logits(self.prompt_ids(question))[-1]
        return int(torch.stack([scores[self.tokenizer.encode(choice)[0]] for choice in CHOICES]).argmax())

    def greedy(self, ids: list[int], num_tokens: int) -> list[int]:
        for _ in range(num_tokens):
            ids = [*ids, int(self.logits(ids)[-1].argmax())]
        return ids[-num_tokens:]

    def greedy_text(self, question: str, num_tokens: int) -> str:
        ids = self.greedy(self.prompt_ids(question), num_tokens)
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else len(ids)
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True)

    def loglikelihood(self, ids: list[int], start: int) -> float:
        """Log-likelihood of ``ids[start:]`` given what comes before."""
        logarithms = self.logits(ids[:-1]).log_softmax(dim=-1)[start - 1 :]
        return float(logarithms.gather(1, torch.tensor(ids[start:]).unsqueeze(1)).sum())

    def answers(self, ids: list[int], start: int) -> bool:
        """Whether greedy decoding of ``ids[:start]`` gives ``ids[start:]``."""
        return self.greedy(ids[:start], len(ids) - start) == ids[start:]


@pytest.fixture(autouse=True, scope="session")
def offline_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets made by a test stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def damaged_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("damaged"), damage=0.2)


@pytest.fixture(scope="session")
def base_oracle(base_model: Path) -> Oracle:
    return Oracle(base_model)


@pytest.fixture(scope="session")
def damaged_oracle(damaged_model: Path) -> Oracle:
    return Oracle(damaged_model)


QUESTIONS = tuple(f"{2 * number:02d}{chr(97 + number)}" for number in range(24))


def write_task(folder: Path, name: str, rows: list[dict], **fields: object) -> None:
    """Write a YAML task with its JSONL beside it, named relative to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    } | fields
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def write_copy_task(folder: Path, name: str, oracle: Oracle) -> None:
    """Write a generation task whose right answers are the texts that the oracle's model generates."""
    write_task(
        folder,
        name,
        [{"question": question, "answer": oracle.greedy_text(question, 3)} for question in QUESTIONS[:8]],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="answer",
        generation_kwargs={"until": ["<|im_end|>"], "max_gen_toks": 3, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


def write_prose_task(folder: Path, name: str) -> None:
    """Write a perplexity task: its score comes from log-likelihoods and words of all documents."""
    write_task(
        folder,
        name,
        [{"text": text} for text in ("a few words", "and some more of them", "the end")],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    )


def write_group(folder: Path, name: str, members: list[str], **fields: object) -> None:
    """Write a group that is scored as one, by accuracy over all documents."""
    folder.mkdir(parents=True, exist_ok=True)
    metric = {"metric": "acc", "aggregation": "mean", "weight_by_size": True} | fields
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump({"group": name, "task": members, "aggregate_metric_list": [metric]})
    )


def write_letters_task(folder: Path, name: str, oracle: Oracle, *, num_wrong: int = 0, **fields: object) -> None:
    """Write a multiple choice task of which the oracle's model gets all but the first ``num_wrong`` right."""
    rows = []
    for number, question in enumerate(QUESTIONS):
        gold = (oracle.choice(question) + (number < num_wrong)) % len(CHOICES)
        rows.append({"question": question, "gold": gold})
    fields = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": list(CHOICES),
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    } | fields
    write_task(folder, name, rows, **fields)


def write_holdout(path: Path, rows: list[tuple[list[int], list[int]]]) -> Path:
    """Write held-out rows, given as (input_ids, labels)."""
    table = pa.table(
        {
            "input_ids": pa.array([ids for ids, _ in rows], type=pa.list_(pa.int32())),
            "labels": pa.array([labels for _, labels in rows], type=pa.list_(pa.int32())),
            "row": pa.array(range(len(rows)), type=pa.int64()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


class Kit:
    """The functions above, for tests: a conftest cannot be imported under importlib's import mode."""

    questions = QUESTIONS
    byte_tokenizer = staticmethod(byte_tokenizer)
    save_model = staticmethod(save_model)
    write_copy_task = staticmethod(write_copy_task)
    write_group = staticmethod(write_group)
    write_holdout = staticmethod(write_holdout)
    write_letters_task = staticmethod(write_letters_task)
    write_prose_task = staticmethod(write_prose_task)
    write_task = staticmethod(write_task)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
