"""Texts that a model samples itself: its own distribution, from the first token to the end of a conversation."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from osft.errors import TrainingError
from osft.subspace.memory.self_samples import sample_texts

END = 2


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def texts_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int, tokens: int, seed: int = 0
) -> list[list[int]]:
    return [sample.input_ids.tolist() for sample in sample_texts(model, tokenizer, number, tokens, seed)]


def test_half_begin_as_documents_and_half_are_conversations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = texts_of(model, tokenizer, 10, 60)

    assert all(1 < len(row) <= 60 for row in rows)
    # Without a start token the end token, which stands between documents.
    assert [row[0] for row in rows[:5]] == [END] * 5
    words = [str(tokenizer.decode(row)) for row in rows[5:]]
    assert all(text.startswith("<|im_start|>user\n") for text in words)
    assert all("<|im_end|>\n<|im_start|>assistant\n" in text for text in words if len(text) < 60)


def test_a_text_ends_with_the_first_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    # Nearly all of the probability on the end token.
    model.lm_head = torch.nn.Linear(32, len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[END] = 50.0
    tokenizer.chat_template = None

    assert texts_of(model, tokenizer, 3, 20) == [[END, END]] * 3


def test_the_next_token_is_drawn_with_the_models_own_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = None
    # What a model's own settings say of sampling must not count.
    model.generation_config.update(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0)
    with torch.no_grad():
        expected = model(torch.tensor([[END]])).logits[0, -1].softmax(dim=0)

    drawn = Counter(row[1] for row in texts_of(model, tokenizer, 2000, 2))

    token = int(expected.argmax())
    deviation = float((expected[token] * (1 - expected[token]) / 2000).sqrt())
    assert abs(drawn[token] / 2000 - float(expected[token])) < 4 * deviation


def test_the_same_seed_gives_the_same_texts_and_another_one_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    one, same, other = (texts_of(model, tokenizer, 4, 12, seed) for seed in (1, 1, 2))

    assert one == same != other


def test_sampling_leaves_mode_and_generator_as_they_were(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model.train()
    state = torch.random.get_rng_state()

    texts_of(model, tokenizer, 4, 12)

    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tokenizer_with_nothing_to_begin_with_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.eos_token = None
    tokenizer.chat_template = None

    with pytest.raises(TrainingError, match=r"nothing to begin a text with\. Give calibration"):
        texts_of(model, tokenizer, 1, 5)


def test_a_template_without_an_end_token_still_begins_conversations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.eos_token = None

    rows = texts_of(model, tokenizer, 2, 40)

    assert all(str(tokenizer.decode(row)).startswith("<|im_start|>user\n") for row in rows)
