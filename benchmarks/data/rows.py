"""The conversations, and the tokenizer, that ``benchmarks/data/`` measures with: made here, the same each time.

Words follow Zipf's law, as those of a language do, because a tokenizer's speed hangs on how often it meets a word
again. Conversations come in blocks with a seed of their own, so a smaller file is the beginning of a larger one, and
files of all sizes have the same tokenizer. No text is copied from anywhere and nothing is fetched.
"""

import gzip
import logging
import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from osft.parallel import map_in_order
from osft.workspace import atomic_file, write_json

logger = logging.getLogger("osft.benchmarks")

# Part of every file's name: a change of what is made changes it, so that no file of an earlier kind is taken.
VERSION = 1
SEED = 20_261_122
ROWS_PER_BLOCK = 1_000
MIN_MESSAGES, MAX_MESSAGES = 3, 5
# With the keys and quotes of JSON, about 750 bytes a conversation.
WORDS_PER_ROW = 120
# How the words of a conversation are shared out: answers are the longest, system messages the shortest.
WEIGHT_OF_ROLE = {"system": 0.5, "user": 1.0, "assistant": 2.0}
WORD_COUNT = 30_000
# The i-th most common word appears in proportion to i to the power of this.
ZIPF_EXPONENT = -1.0
ONSETS = [*"bcdfghlmnprstvw", "br", "ch", "cl", "dr", "fl", "gr", "kr", "pl", "pr", "sh", "sp", "st", "th", "tr"]
# Simple ones are the more common; the last two have two bytes.
VOWELS = [*"aeiouaeiou", "ai", "ea", "ee", "ou", "é", "ü"]
CODAS = ["", "", "", "n", "r", "s", "t", "l", "nd", "st"]
MAX_SYLLABLES = 3
# What follows a word, with its share; a sentence has about twelve words.
ENDINGS = {" ": 0.83, ", ": 0.08, ". ": 0.07, ".\n": 0.02}

TOKENIZER_ROWS = 5_000
VOCABULARY = 8_192
END_OF_TURN, START_OF_TURN = "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The peer asks the model's configuration for its architecture; no other file of a model is read.
MODEL_CONFIG = {"model_type": "qwen3"}


def write_conversations(folder: Path, rows: int) -> Path:
    """Return a JSON Lines file of ``rows`` conversations in ``folder``; one that is there already is taken."""
    path = folder / f"conversations-{VERSION}-{rows}.jsonl"
    if not path.exists():
        logger.info("writing %d conversations", rows)
        with atomic_file(path) as file:
            for block in make_blocks(rows):
                file.write(block)
    return path


def write_texts(folder: Path, conversations: Path, tokenizer_folder: Path) -> Path:
    """Return a JSON Lines file of the strings that the chat template makes of ``conversations``, one a line."""
    path = folder / f"{conversations.stem}-texts.jsonl"
    if not path.exists():
        logger.info("rendering %s", conversations.name)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
        with conversations.open("rb") as lines, atomic_file(path) as file:
            for line in lines:
                text = tokenizer.apply_chat_template(orjson.loads(line)["messages"], tokenize=False)
                file.write(orjson.dumps(text, option=orjson.OPT_APPEND_NEWLINE))
    return path


def write_download(folder: Path, conversations: Path, size_bytes: int) -> tuple[Path, Path]:
    """Return a file of the first whole lines of ``conversations`` that fit into ``size_bytes``, and its gzip."""
    plain = folder / f"{conversations.stem}-download.jsonl"
    # Another name: a web server may send file.gz in place of file.
    packed = folder / f"{conversations.stem}-packed.jsonl.gz"
    if not plain.exists():
        with conversations.open("rb") as lines, atomic_file(plain) as file:
            for line in lines:
                if file.tell() + len(line) > size_bytes:
                    break
                file.write(line)
    if not packed.exists():
        logger.info("packing %s", plain.name)
        with plain.open("rb") as source, atomic_file(packed) as file, gzip.open(file, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return plain, packed


def write_tokenizer(folder: Path) -> Path:
    """Return a folder with a byte-level BPE trained on the first conversations, and a ChatML template."""
    path = folder / f"tokenizer-{VERSION}"
    if not (path / "config.json").exists():
        logger.info("training a tokenizer of %d tokens", VOCABULARY)
        rows = (orjson.loads(line) for block in make_blocks(TOKENIZER_ROWS) for line in block.splitlines())
        train_tokenizer(message["content"] for row in rows for message in row["messages"]).save_pretrained(path)
        # Written last: with it the folder is whole.
        write_json(path / "config.json", MODEL_CONFIG)
    return path


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of :data:`VOCABULARY` tokens with a ChatML template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TURN, START_OF_TURN],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_OF_TURN, pad_token=END_OF_TURN, chat_template=CHATML
    )


def make_blocks(rows: int) -> Iterator[bytes]:
    """Yield the lines of ``rows`` conversations, a block at a time."""
    words = make_words()
    # Partial blocks are cut from whole ones: a row does not depend on how many follow it.
    blocks = map_in_order(BlockMaker(words), range(-(-rows // ROWS_PER_BLOCK)))
    for index, block in enumerate(blocks):
        left = rows - index * ROWS_PER_BLOCK
        yield block if left >= ROWS_PER_BLOCK else b"".join(islice(block.splitlines(keepends=True), left))


def make_words() -> list[str]:
    """Return :data:`WORD_COUNT` different words, the most common first, which are the short ones, as in a language."""
    draw = random.Random(SEED)
    words: set[str] = set()
    while len(words) < WORD_COUNT:
        syllables = range(draw.randint(1, MAX_SYLLABLES))
        words.add("".join(draw.choice(ONSETS) + draw.choice(VOWELS) + draw.choice(CODAS) for _ in syllables))
    return sorted(words, key=lambda word: (len(word), word))


class BlockMaker:
    """Makes blocks of conversations; goes to each worker process once."""

    def __init__(self, words: Sequence[str]) -> None:
        """Lay out every word with every ending."""
        self._forms = np.array([word + ending for word in words for ending in ENDINGS], dtype=object)
        shares = np.outer(np.arange(1, len(words) + 1) ** ZIPF_EXPONENT, list(ENDINGS.values())).ravel()
        self._cumulated_shares = np.cumsum(shares) / shares.sum()

    def __call__(self, index: int) -> bytes:
        """Return the lines of the block with this number."""
        draw = np.random.default_rng((SEED, index))
        sizes = draw.integers(MIN_MESSAGES, MAX_MESSAGES + 1, size=ROWS_PER_BLOCK)
        lengths = np.clip(draw.normal(WORDS_PER_ROW, WORDS_PER_ROW / 4, ROWS_PER_BLOCK), 20, None).astype(int)
        places = np.searchsorted(self._cumulated_shares, draw.random(int(lengths.sum()))).clip(max=len(self._forms) - 1)
        words: list[str] = self._forms[places].tolist()
        lines, end = [], 0
        for size, length in zip(sizes.tolist(), lengths.tolist(), strict=True):
            start, end = end, end + length
            lines.append(orjson.dumps(make_row(words[start:end], size), option=orjson.OPT_APPEND_NEWLINE))
        return b"".join(lines)


def make_row(words: Sequence[str], size: int) -> dict[str, Any]:
    """Return a conversation of ``size`` messages that share ``words``; odd sizes begin with a system message."""
    roles = ["system"] * (size % 2) + ["user", "assistant"] * (size // 2)
    unit = len(words) / sum(WEIGHT_OF_ROLE[role] for role in roles)
    messages, end = [], 0.0
    for role in roles:
        start, end = end, end + WEIGHT_OF_ROLE[role] * unit
        messages.append({"role": role, "content": "".join(words[round(start) : round(end)]).rstrip()})
    return {"messages": messages}
