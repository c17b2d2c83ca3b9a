"""Weights that share an input are found, whatever they are called."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from osft.planning.tracking import AssumedValues
from osft.subspace.attach import attach
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.inputs import InputPlace, input_places
from osft.subspace.memory.groups import Group, find_groups
from osft.subspace.targets import find_targets

BATCH = torch.arange(3, 15).reshape(2, 6)


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def groups_of(model: PreTrainedModel) -> tuple[Group, ...]:
    return find_groups(model, input_places(model, find_targets(model)), BATCH)


def short(groups: tuple[Group, ...]) -> list[list[str]]:
    return [[name.rpartition(".")[2] for name in group] for group in groups]


def test_queries_keys_and_values_share_an_input_and_gates_with_ups(model: PreTrainedModel) -> None:
    groups = groups_of(model)

    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert short(groups) == 2 * block
    assert {name.split(".")[2] for name in groups[0]} == {"0"}


def test_a_block_that_hands_one_input_to_attention_and_mlp_has_one_group_of_both() -> None:
    config = GPTJConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=32)

    groups = groups_of(GPTJForCausalLM(config))

    assert [set(group) for group in short(groups)] == [
        {"k_proj", "v_proj", "q_proj", "fc_in"},
        {"out_proj"},
        {"fc_out"},
    ]


def test_weights_with_inputs_of_their_own_are_apart() -> None:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=32)

    assert short(groups_of(GPT2LMHeadModel(config))) == [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]


def test_stacks_of_experts_are_left_out() -> None:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip

    assert short(groups_of(Qwen3MoeForCausalLM(config))) == [["q_proj", "k_proj", "v_proj"], ["o_proj"]]


def test_weights_that_no_token_reaches_are_groups_of_their_own(model: PreTrainedModel) -> None:
    places = input_places(model, find_targets(model))
    # A module that the forward pass does not call.
    model.model.layers[0].mlp.unused = torch.nn.Linear(32, 4)
    name = "model.layers.0.mlp.unused"
    places = {"one": next(iter(places.values())), name: InputPlace(modules=(name,), inputs=32)}

    assert find_groups(model, places, BATCH) == (("one",), (name,))


def test_a_trained_model_has_the_groups_of_its_base(model: PreTrainedModel) -> None:
    targets = find_targets(model)
    places = input_places(model, targets)
    before = find_groups(model, places, BATCH)

    attach(model, targets, lambda name, weight: protect_leading_directions(weight, 0.25))

    assert find_groups(model, places, BATCH) == before


def test_tensors_without_values_have_the_groups_of_real_ones(model: PreTrainedModel) -> None:
    with torch.device("meta"), AssumedValues():
        without_values = AutoModelForCausalLM.from_config(model.config)
        groups = find_groups(without_values, input_places(without_values, find_targets(without_values)), BATCH)

    assert groups == groups_of(model)


def test_halves_of_one_tensor_are_inputs_of_their_own(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp = Halves(32)
    names = [f"model.layers.0.mlp.{half}" for half in ("first", "second", "first_again")]

    groups = find_groups(model, {name: InputPlace(modules=(name,), inputs=16) for name in names}, BATCH)

    assert short(groups) == [["first", "first_again"], ["second"]]


class Halves(nn.Module):
    """Multiplies the halves of a tensor that lies half by half in memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second, self.first_again = (nn.Linear(size // 2, size) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        first, second = torch.stack(states.chunk(2, dim=-1))
        return self.first(first) + self.second(second) + self.first_again(first)


def test_looking_leaves_mode_and_hooks_of_the_model_as_they_were(model: PreTrainedModel) -> None:
    model.train()

    groups_of(model)

    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
