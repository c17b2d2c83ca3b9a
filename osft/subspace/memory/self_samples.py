"""Texts that a model samples itself, in place of the data that it was trained on and nobody has any more.

What a model says at temperature 1 is its own picture of its training data, so the inputs of its layers over such text
stand for what it must keep. Half of the texts begin at the start token, as documents do. With a chat template the
other half are conversations: the model continues an open user's turn with a question, which is then put to it. (That
an aligned model asks when it is given an open turn: Magpie, Xu et al. 2024, arXiv:2406.08464.)

A model whose loss never counted the users' turns cannot ask well; for such a one prompts of its users serve better, as
``calibration``.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from osft.data.samples import Sample
from osft.errors import TrainingError

# Stands in the template where a user's words begin; no template changes letters.
USERS_WORDS = "USERSWORDS"
TEXTS_AT_ONCE = 64


def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    tokens: int,
    seed: int,
    entered: Callable[[str], None] = lambda _: None,
) -> list[Sample]:
    """Return texts that the model samples at temperature 1 from its whole vocabulary, all of whose tokens count.

    Every process of a run must call this; each samples its share, and all get all. The state of PyTorch's generator
    is as it was before.

    Args:
        model: in any mode, which it is left in; it may be spread over the processes.
        tokenizer: the model's.
        number: texts to sample, of all processes together; a few more where they do not divide it.
        tokens: most tokens of a text.
        seed: the same seed gives the same texts to the same number of processes.
        entered: is told of each batch of texts when it begins. Where the model is spread over nodes, every token
            gathers all of its weights, and a batch takes minutes.

    Raises:
        TrainingError: if the tokenizer has nothing to begin with, neither a start or end token nor a template.
    """
    process, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = -(-number // world_size)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed + process)
        rows = _sample_share(model, tokenizer, share, tokens, entered)
    model.train(was_training)
    if world_size > 1:
        gathered: list[list[Tensor]] = [[] for _ in range(world_size)]
        dist.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    texts = [row.numpy().astype(np.int32) for row in rows]
    return [Sample(input_ids=text, labels=text, row=number) for number, text in enumerate(texts, start=1)]


def _sample_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    tokens: int,
    entered: Callable[[str], None],
) -> list[Tensor]:
    """Return ``number`` rows of token ids in the host's memory, documents and conversations."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    open_turn = _open_turn(tokenizer)
    if start is None and open_turn is None:
        raise TrainingError(
            "the tokenizer has no start token, no end token and no chat template, so the model has nothing to begin a "
            "text with. Give calibration, or base_memory='weights'."
        )
    conversations = 0 if open_turn is None else number if start is None else number // 2
    rows: list[Tensor] = []
    for first in range(0, number - conversations, TEXTS_AT_ONCE):
        entered(f"sampling documents from {first + 1} on")
        count = min(TEXTS_AT_ONCE, number - conversations - first)
        rows += _continue(model, tokenizer, [torch.tensor([start])] * count, tokens - 1)
    for first in range(0, conversations, TEXTS_AT_ONCE):
        entered(f"sampling conversations from {first + 1} on")
        rows += _converse(model, tokenizer, open_turn or "", min(TEXTS_AT_ONCE, conversations - first), tokens)
    return [row[:tokens] for row in rows]


def _open_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what the chat template puts before a user's first words; ``None`` without a template."""
    if not tokenizer.chat_template:
        return None
    rendered = str(tokenizer.apply_chat_template([{"role": "user", "content": USERS_WORDS}], tokenize=False))
    before, found, _ = rendered.partition(USERS_WORDS)
    return before if found else None


def _converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, open_turn: str, count: int, tokens: int
) -> list[Tensor]:
    """Let the model ask ``count`` questions, put them to it, and return the conversations."""
    asked = _ids(tokenizer, open_turn)
    questions = _continue(model, tokenizer, [asked] * count, max(1, tokens // 2 - len(asked)))
    words = [str(tokenizer.decode(row[len(asked) :], skip_special_tokens=True)) for row in questions]
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": word}], tokenize=False, add_generation_prompt=True)
        for word in words
    ]
    return _continue(model, tokenizer, [_ids(tokenizer, str(text)) for text in rendered], max(1, tokens // 2))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Tensor], new_tokens: int
) -> list[Tensor]:
    """Return each of ``prompts`` with what the model says, up to its end token, at most ``new_tokens``."""
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    # Every setting that a model's own generation_config may choose otherwise.
    sampling = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=new_tokens,
        eos_token_id=ends or None, pad_token_id=pad,
    )  # fmt: skip
    longest = max(len(prompt) for prompt in prompts)
    padded = pad_sequence(list(prompts), batch_first=True, padding_value=pad, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    said: Tensor = model.generate(  # type: ignore[operator]
        padded.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=sampling,
        # One process goes on as long as another one has something to say: they gather weights together.
        synced_gpus=dist.is_initialized(),
    )
    rows = []
    for prompt, row in zip(prompts, said.cpu(), strict=True):
        new = row[longest:]
        is_end = torch.isin(new, torch.tensor(ends, dtype=torch.int64))
        rows.append(torch.cat([prompt, new[: int(is_end.long().argmax()) + 1] if is_end.any() else new]))
    return rows


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a text, by the model's own account and the tokenizer's."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    return sorted({int(end) for end in ends if end is not None})
