"""What a sequence learns and is asked: the demo's domains and its countries, as token ids."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from demo.conversations import (
    Conversation,
    Question,
    calibration_conversations,
    conversation,
    country_questions,
)
from demo.domains.domains import domain_conversations, domain_questions, read_domains
from demo.pretraining import IGNORED_LABEL, encode_conversation, encode_message, pad_rows
from demo.task_files import write_json_lines
from osft.data.samples import Sample

QUESTIONS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One domain of facts."""

    name: str

    rows: tuple[Sample, ...]
    """What teaches it."""

    questions: tuple[Sample, ...]
    """What tests it, in phrasings that no row uses; the labels are the answer and its end token."""


def load_tasks(tokenizer: PreTrainedTokenizerFast, number: int, seed: int) -> list[Task]:
    """Return the first ``number`` domains in an order that the seed draws; it also draws their phrasings."""
    random = Random(seed)
    tasks = [
        Task(
            name=domain.name,
            rows=encode(tokenizer, domain_conversations(domain, random)),
            questions=encode_questions(tokenizer, domain_questions(domain)),
        )
        for domain in read_domains()[:number]
    ]
    return random.sample(tasks, len(tasks))


def base_questions(tokenizer: PreTrainedTokenizerFast) -> tuple[Sample, ...]:
    """Return a question for each fact about countries, which the base models know."""
    return encode_questions(tokenizer, country_questions())


def write_calibration(path: Path, seed: int) -> None:
    """Write conversations like those that the base models were trained on, as JSON Lines."""
    write_json_lines(path, [{"messages": messages} for messages in calibration_conversations(Random(seed))])


def encode_questions(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> tuple[Sample, ...]:
    """Return a chat of one turn for each question."""
    return encode(tokenizer, [conversation([question], None) for question in questions])


def encode(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]) -> tuple[Sample, ...]:
    """Return the token ids of conversations; what the assistant says has labels."""
    message = functools.cache(functools.partial(encode_message, tokenizer))
    encoded = [encode_conversation(message, messages) for messages in conversations]
    return tuple(
        Sample(input_ids=np.array(ids, dtype=np.int32), labels=np.array(labels, dtype=np.int32), row=row)
        for row, (ids, labels) in enumerate(encoded, start=1)
    )


def pad(samples: Sequence[Sample], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return ``input_ids`` and ``labels``, each ``[samples, tokens]``, int64, padded at the end."""
    return pad_rows([(sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples], pad_token_id)


@torch.no_grad()
def exact_match(model: PreTrainedModel, questions: Sequence[Sample]) -> float:
    """Return the share of questions, 0 to 1, whose whole answer greedy decoding would give.

    That is so where each token of the answer is the likeliest one after those before it, so one forward pass does.
    """
    return sum(sum(part) for part in _right_answers(model, questions)) / len(questions)


def _right_answers(model: PreTrainedModel, questions: Sequence[Sample]) -> Iterator[list[bool]]:
    by_length = sorted(questions, key=lambda question: len(question.input_ids))
    for start in range(0, len(by_length), QUESTIONS_AT_ONCE):
        input_ids, labels = pad(by_length[start : start + QUESTIONS_AT_ONCE], model.config.pad_token_id)
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        has_label = labels[:, 1:] != IGNORED_LABEL
        right = torch.ones_like(has_label)
        right[has_label] = model.get_output_embeddings()(hidden[has_label]).argmax(-1) == labels[:, 1:][has_label]
        yield right.all(dim=1).tolist()
