"""A model in, a model out."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from osft.errors import ConfigError
from osft.subspace.attach import attach, find_targets, subspace_layers


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


INPUT_IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])


def test_by_default_every_linear_of_attention_and_mlp_is_a_target_and_neither_embeddings_nor_head(
    model: PreTrainedModel,
) -> None:
    targets = find_targets(model)

    kinds = {name.rsplit(".", 1)[1] for name in targets}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(targets) == 14


def test_target_patterns_are_regular_expressions_over_module_names(model: PreTrainedModel) -> None:
    targets = find_targets(model, [r"layers\.1\..*\.[qv]_proj$"])

    assert list(targets) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_candidates(model: PreTrainedModel) -> None:
    with pytest.raises(
        ConfigError, match=r"target_patterns=\['query'\] matches no linear.*layers\.0\.self_attn\.q_proj"
    ):
        find_targets(model, ["query"])


def test_a_pattern_cannot_make_the_head_a_target(model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="matches no linear"):
        find_targets(model, ["lm_head"])


def test_attaching_does_not_change_the_logits_by_a_bit(model: PreTrainedModel) -> None:
    expected = model(INPUT_IDS).logits

    attach(model, 0.25)

    assert torch.equal(model(INPUT_IDS).logits, expected)


def test_only_the_free_directions_of_the_targets_are_trained(model: PreTrainedModel) -> None:
    attach(model, 0.25)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.core" for name, _ in subspace_layers(model)}


def test_experts_that_share_a_weight_of_three_dimensions_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip

    attach(Qwen3MoeForCausalLM(config), 0.25)

    # Four experts: gate and up, 2 x 8 x 16, and down, 16 x 8.
    assert "1536 values in weights of three dimensions (experts) are not trained" in caplog.text
