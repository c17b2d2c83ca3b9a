"""Packed rows against padded ones, and the choice between them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from osft.data.samples import Sample
from osft.training.attention import PACKED_ATTENTION, attend_within_samples, choose_forward
from osft.training.batches import collate
from osft.training.loss import summed_loss

VOCAB_SIZE = 60
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PACKABLE: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0,
        )
    ),
}  # fmt: skip


def make_model(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    return make().train()


def make_samples(seed: int = 0, lengths: tuple[int, ...] = (20, 9, 15, 2)) -> list[Sample]:
    generator = np.random.default_rng(seed)
    all_ids = [generator.integers(3, VOCAB_SIZE, length, dtype=np.int32) for length in lengths]
    return [Sample(input_ids=ids, labels=ids, row=row) for row, ids in enumerate(all_ids, start=1)]


def loss_and_gradients(
    model: PreTrainedModel, samples: list[Sample], *, packed: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    forward = choose_forward(model, samples)
    loss = summed_loss(model, collate(samples, packed=packed), forward.logits)
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", PACKABLE)
def test_packed_samples_give_the_loss_and_gradients_of_padded_ones(family: str, checkpointing: bool) -> None:
    model, reference = make_model(PACKABLE[family]), make_model(PACKABLE[family])
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    samples = make_samples()

    loss, gradients = loss_and_gradients(model, samples, packed=True)

    padded = collate(samples, packed=False)
    expected = summed_loss(reference, padded, None)
    expected.backward()
    assert choose_forward(model, samples).packed
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in reference.named_parameters():
        # Sums over the tokens in another order.
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", PACKABLE)
def test_no_token_of_a_sample_sees_another_sample(family: str) -> None:
    model = make_model(PACKABLE[family])
    samples, others = make_samples(), make_samples(seed=1)
    forward = choose_forward(model, samples)
    mixed = [others[0], samples[1], others[2], others[3]]

    with torch.no_grad():
        first, second = (
            forward.logits.body(**collate(row, packed=True).model_inputs(), use_cache=False).last_hidden_state[0]
            for row in (samples, mixed)
        )

    # The second sample stands at tokens 20 to 28 of both rows.
    torch.testing.assert_close(first[20:29], second[20:29], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(first[:20], second[:20], atol=0.1)


def test_a_model_made_ready_for_packing_still_takes_padded_batches() -> None:
    model, reference = make_model(PACKABLE["llama"]), make_model(PACKABLE["llama"])
    batch = collate(make_samples(), packed=False)
    left_padded = {"input_ids": batch.input_ids.flip(1), "attention_mask": batch.attention_mask.flip(1)}

    choose_forward(model, make_samples())

    assert model.config._attn_implementation == PACKED_ATTENTION
    real = left_padded["attention_mask"].bool()
    torch.testing.assert_close(model(**left_padded).logits[real], reference(**left_padded).logits[real])


def test_the_way_attention_is_computed_is_not_saved_with_the_model(tmp_path: Path) -> None:
    model = make_model(PACKABLE["llama"])
    choose_forward(model, make_samples())

    model.save_pretrained(tmp_path)

    assert PACKED_ATTENTION not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12)),
            "a sliding window of 12 tokens, and the longest sample has 20",
        ),
        (
            lambda: Qwen3ForCausalLM(
                Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
            ),
            "a sliding window of 8 tokens",
        ),
        (
            lambda: JambaForCausalLM(
                JambaConfig(**SIZES, num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False)
            ),
            "has convolutions along the tokens",
        ),
        (
            lambda: FalconForCausalLM(
                FalconConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
            ),
            "does not let its attention be chosen",
        ),
        (
            lambda: Qwen3NextForCausalLM(
                Qwen3NextConfig(
                    **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                    shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
                    linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
                )
            ),
            "layers of the kind linear_attention",
        ),
        (
            lambda: LlamaForCausalLM._from_config(LlamaConfig(**SIZES), attn_implementation="eager"),
            "computes its attention by 'eager'",
        ),
    ],
    ids=["mistral", "qwen3", "jamba", "falcon", "qwen3-next", "eager"],
)  # fmt: skip
def test_a_model_that_cannot_be_packed_is_padded_and_says_why(
    make: Callable[[], PreTrainedModel], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(make)
    before = model.config._attn_implementation

    with caplog.at_level("INFO"):
        forward = choose_forward(model, make_samples())

    assert not forward.packed
    assert f"padded, not packed: {type(model).__name__}" in caplog.text
    assert reason in caplog.text
    assert model.config._attn_implementation == before


def test_a_window_that_no_sample_fills_does_not_keep_from_packing() -> None:
    model = make_model(lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=20)))

    assert choose_forward(model, make_samples()).packed


class LlamaThatLooksBack(LlamaForCausalLM):
    """Mixes each token with the one before it in the row, which neither configuration nor structure tells."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda _, inputs, output: output + output.roll(1, dims=1))


def test_a_model_that_mixes_samples_unforeseen_is_found_out_by_comparison(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(lambda: LlamaThatLooksBack(LlamaConfig(**SIZES)))

    with caplog.at_level("INFO"):
        forward = choose_forward(model, make_samples())

    assert not forward.packed
    assert "computes something else on packed samples" in caplog.text
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pytorchs_kernel_for_variable_lengths_gives_what_a_call_for_each_sample_gives() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 40, 64, generator=generator, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)
    )
    bounds = torch.tensor([0, 25, 32, 40], dtype=torch.int32, device="cuda")
    module = torch.nn.Module()
    module.num_key_value_groups = 2

    at_once, _ = attend_within_samples(module, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=25)
    one_by_one, _ = attend_within_samples(
        module, query.float(), key.float(), value.float(), None, cu_seq_lens_q=bounds, max_length_q=25
    )

    # The rounding of bfloat16.
    torch.testing.assert_close(at_once.float(), one_by_one, rtol=2e-2, atol=2e-2)
