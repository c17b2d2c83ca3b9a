"""The loss in chunks against the model's own cross-entropy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from osft.data.samples import Sample, gather_samples
from osft.training import loss
from osft.training.batches import collate
from osft.training.loss import find_logits, summed_loss

VOCAB_SIZE = 60
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    ),
    "gemma2, capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, final_logit_softcapping=5.0, attn_logit_softcapping=None)
    ),
    "cohere, multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
}


def make_samples() -> list[Sample]:
    generator = np.random.default_rng(0)
    samples = []
    for row, (length, ignored) in enumerate([(20, 6), (9, 1), (15, 14), (2, 0)], start=1):
        ids = generator.integers(3, VOCAB_SIZE, length, dtype=np.int32)
        labels = ids.copy()
        labels[:ignored] = -100
        samples.append(Sample(input_ids=ids, labels=labels, row=row))
    return samples


def make_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[family]().train()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Positions of a chunk: 28 trained ones take several."""
    monkeypatch.setattr(loss, "LOGITS_IN_CHUNK", 8 * VOCAB_SIZE)
    return 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("small_chunks")
def test_loss_and_gradients_are_those_of_the_model_itself(family: str) -> None:
    samples, model = make_samples(), make_model(family)
    batch = collate(samples, packed=False)

    logits = find_logits(model, batch)
    chunked = summed_loss(model, batch, logits) / 4
    chunked.backward()

    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    own = [
        model(input_ids=torch.tensor(s.input_ids[None]).long(), labels=torch.tensor(s.labels[None]).long()).loss
        * int(gather_samples([s]).trained_tokens.sum())
        for s in samples
    ]
    (sum(own) / 4).backward()
    assert logits is not None
    torch.testing.assert_close(chunked, sum(own) / 4)
    for name, parameter in model.named_parameters():
        # Sums of a hundred products in another order.
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("trains_head", [True, False])
def test_never_more_than_a_chunk_of_logits_is_computed_at_once(small_chunks: int, trains_head: bool) -> None:
    model = make_model("llama")
    model.lm_head.requires_grad_(trains_head)
    batch = collate(make_samples(), packed=False)
    logits = find_logits(model, batch)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))

    summed_loss(model, batch, logits).backward()

    assert max(rows) <= small_chunks
    assert sum(rows) == gather_samples(make_samples()).trained_tokens.sum()
    assert (model.lm_head.weight.grad is not None) == trains_head


@pytest.mark.usefixtures("small_chunks")
def test_in_bfloat16_the_loss_is_summed_in_float32_and_gradients_keep_their_dtype() -> None:
    model = make_model("llama, tied").to(torch.bfloat16)
    batch = collate(make_samples(), packed=False)

    chunked = summed_loss(model, batch, find_logits(model, batch))
    chunked.backward()

    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    summed_loss(model, batch, None).backward()
    assert (chunked.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    difference = (gradient - model.lm_head.weight.grad).float().norm()
    # Two bfloat16 results that each carry a relative rounding of 2^-8 an element.
    assert difference <= 1e-2 * gradient.float().norm()


def test_a_frozen_model_has_a_loss_too() -> None:
    model = make_model("llama").requires_grad_(False)
    batch = collate(make_samples(), packed=False)

    chunked = summed_loss(model, batch, find_logits(model, batch))

    torch.testing.assert_close(chunked, summed_loss(model, batch, None))


class LlamaWithItsOwnLogits(LlamaForCausalLM):
    """What no configuration tells."""

    def forward(self, *args: object, **kwargs: object) -> object:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.sin()
        return outputs


def test_logits_made_in_an_unknown_way_are_left_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = LlamaWithItsOwnLogits(LlamaConfig(**SIZES))
    batch = collate(make_samples(), packed=False)

    with caplog.at_level("INFO"):
        logits = find_logits(model, batch)

    assert logits is None
    assert "makes its logits in a way of its own" in caplog.text
    trained = batch.labels[:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1][trained],
        batch.labels[:, 1:][trained],
        reduction="sum",
    )
    torch.testing.assert_close(summed_loss(model, batch, logits), expected)


def test_looking_for_the_logits_leaves_the_model_in_its_mode() -> None:
    model = make_model("gpt2")

    find_logits(model, collate(make_samples(), packed=False))

    assert model.training
    assert not model.lm_head._forward_hooks
