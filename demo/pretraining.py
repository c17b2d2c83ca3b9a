"""Train the demo's base model from scratch on the stream of conversations about countries and words.

A Qwen3 model of 1.2 million parameters. Grouped-query attention and an MLP three times as wide as the hidden size
give it weights of all three shapes that OSFT treats differently: square, wide and tall.

A model this small that only fits its facts forgets many of them at the first touch: nothing has taught it to bear
a change of its weights, as long training on much data teaches a large one. So each step takes its gradient at
weights with random noise added, which leads to a minimum with room around it (gradient of the smoothed loss).
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from demo.conversations import Conversation, base_conversations
from demo.tokenizer import CONTEXT_TOKENS

logger = logging.getLogger(__name__)

TokensAndLabels = tuple[list[int], list[int]]

IGNORED_LABEL = -100
LOG_INTERVAL_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingConfig:
    """How long and how fast the base model learns."""

    seed: int
    num_steps: int = 4000
    batch_size: int = 32
    """Conversations per step."""

    learning_rate: float = 3e-3
    """Its highest value: a short linear warm-up, then a cosine to zero."""

    warmup_steps: int = 100
    weight_decay: float = 0.1
    noise_ratio: float = 1.2
    """Standard deviation of the noise on each weight of the blocks, as a share of that weight's root mean square.

    It rises from zero over the first half of the training: a new model learns nothing under it."""

    max_gradient_norm: float = 1.0


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return the untrained base model in float32."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=384,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def pretrain(tokenizer: PreTrainedTokenizerFast, config: PretrainingConfig) -> Qwen3ForCausalLM:
    """Return a base model that knows the countries, in evaluation mode."""
    model = new_model(tokenizer, config.seed)
    weights = [linear.weight.data for linear in model.model.layers.modules() if isinstance(linear, nn.Linear)]
    teach(model, weights, tokenizer, config)
    return model


def teach(
    model: PreTrainedModel, weights: Sequence[Tensor], tokenizer: PreTrainedTokenizerFast, config: PretrainingConfig
) -> None:
    """Train ``model`` on the stream of conversations, and leave it in evaluation mode.

    Args:
        model: untrained.
        weights: of the linear layers of its blocks, which get noise.
        tokenizer: the model's.
        config: steps, rates and noise.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(learning_rate_factor, config=config))
    for step, (input_ids, labels) in enumerate(islice(batches(tokenizer, config), config.num_steps), start=1):
        with noise_on(weights, config.noise_ratio * min(1.0, 2 * step / config.num_steps)):
            loss = answer_loss(model, input_ids, labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % LOG_INTERVAL_STEPS == 0:
            logger.info("step %d of %d: loss %.4f", step, config.num_steps, loss.item())
    model.eval()


@contextmanager
def noise_on(weights: Sequence[Tensor], noise_ratio: float) -> Iterator[None]:
    """Add Gaussian noise to ``weights``, a share of each one's root mean square, and take it away at the end."""
    originals = [weight.clone() for weight in weights]
    for weight in weights:
        weight.add_(torch.randn_like(weight), alpha=noise_ratio * weight.square().mean().sqrt().item())
    yield
    for weight, original in zip(weights, originals, strict=True):
        weight.copy_(original)


def learning_rate_factor(step: int, *, config: PretrainingConfig) -> float:
    """Return the share of the highest learning rate at ``step`` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.num_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def batches(tokenizer: PreTrainedTokenizerFast, config: PretrainingConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of ``input_ids`` and ``labels``, each ``[batch, length]``, without end.

    Conversations of like length share a batch: of eight batches drawn together, each takes a stretch of the lengths.
    """
    random = Random(config.seed)
    stream = base_conversations(random)
    encode = functools.lru_cache(maxsize=None)(functools.partial(encode_message, tokenizer))
    while True:
        drawn = [encode_conversation(encode, next(stream)) for _ in range(8 * config.batch_size)]
        drawn.sort(key=lambda row: len(row[0]))
        starts = list(range(0, len(drawn), config.batch_size))
        random.shuffle(starts)
        for start in starts:
            yield pad_rows(drawn[start : start + config.batch_size], tokenizer.pad_token_id)


def encode_message(tokenizer: PreTrainedTokenizerFast, role: str, content: str) -> TokensAndLabels:
    """Return one message's token ids and labels; what an assistant says, to its end token, has labels."""
    opening = tokenizer.encode(f"<|im_start|>{role}\n")
    said = tokenizer.encode(f"{content}<|im_end|>")
    closing = tokenizer.encode("\n")
    spoken = said if role == "assistant" else [IGNORED_LABEL] * len(said)
    labels = [IGNORED_LABEL] * len(opening) + spoken + [IGNORED_LABEL] * len(closing)
    return opening + said + closing, labels


def encode_conversation(encode: Callable[[str, str], TokensAndLabels], messages: Conversation) -> TokensAndLabels:
    """Return the token ids and labels of a whole conversation, as the chat template renders it."""
    pieces = [encode(message["role"], message["content"]) for message in messages]
    return [token for ids, _ in pieces for token in ids], [label for _, labels in pieces for label in labels]


def pad_rows(rows: list[TokensAndLabels], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return ``input_ids`` and ``labels`` of ``rows``, padded at their ends to one length."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = [ids + [pad_token_id] * (length - len(ids)) for ids, _ in rows]
    labels = [labels + [IGNORED_LABEL] * (length - len(labels)) for _, labels in rows]
    return torch.tensor(input_ids), torch.tensor(labels)


def answer_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens with labels.

    Padding needs no attention mask: it stands at the end, and attention looks back only. The head is applied only
    where there is a label, which is at few of the tokens.
    """
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    has_label = targets != IGNORED_LABEL
    return cross_entropy(model.get_output_embeddings()(hidden[has_label]), targets[has_label])
