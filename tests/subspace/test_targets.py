"""A model in, the weights to train out, family by family."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from osft.errors import ConfigError
from osft.subspace.targets import Target, find_targets, holders, target_parameter

# Widths that differ from each other and from every number of experts, so that no rule is right by chance.
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 2}
ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
GATED_MLP = "mlp.gate_proj mlp.up_proj mlp.down_proj"
STACKS = "mlp.experts.gate_up_proj mlp.experts.down_proj"
GPT_NEOX = "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"
GPT2 = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"
FALCON = "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"
MLA = "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj"
SHARED = "mlp.shared_experts.gate_proj mlp.shared_experts.up_proj mlp.shared_experts.down_proj"
SHARED_QWEN = "mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj"
JAMBA = "mamba.in_proj mamba.x_proj mamba.dt_proj mamba.out_proj"
JAMBA_MLP = "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj"
MLA_SIZES = {"q_lora_rank": 10, "kv_lora_rank": 14, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}

# Family: what its configuration adds, the kinds that are found, and the kinds of two or more dimensions that are not:
# routers, gates of shared experts, embeddings, head, convolutions, biases of experts, the decays of state-space mixers.
FAMILIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({}, f"{ATTENTION} {GATED_MLP}", "embed_tokens lm_head"),
    "qwen3": ({"tie_word_embeddings": True}, f"{ATTENTION} {GATED_MLP}", "embed_tokens"),
    "gemma2": ({}, f"{ATTENTION} {GATED_MLP}", "embed_tokens"),
    "granite": ({}, f"{ATTENTION} {GATED_MLP}", "embed_tokens lm_head"),
    "phi3": ({}, "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj", "embed_tokens lm_head"),
    "gpt_neox": ({}, GPT_NEOX, "embed_in lm_head"),
    "falcon": ({}, FALCON, "word_embeddings"),
    "gpt2": ({"n_head": 4, "n_layer": 2}, GPT2, "wte wpe"),
    "mixtral": ({"num_local_experts": 6}, f"{ATTENTION} {STACKS}", "embed_tokens mlp.gate lm_head"),
    "qwen3_moe": (EXPERTS, f"{ATTENTION} {STACKS}", "embed_tokens mlp.gate lm_head"),
    "olmoe": (EXPERTS, f"{ATTENTION} {STACKS}", "embed_tokens mlp.gate lm_head"),
    "qwen2_moe": (
        EXPERTS | {"shared_expert_intermediate_size": 20},
        f"{ATTENTION} {STACKS} {SHARED_QWEN}",
        "embed_tokens mlp.gate mlp.shared_expert_gate lm_head",
    ),
    "gpt_oss": (
        {"num_local_experts": 6},
        f"{ATTENTION} {STACKS}",
        "embed_tokens mlp.router mlp.experts.gate_up_proj_bias mlp.experts.down_proj_bias lm_head",
    ),
    "deepseek_v3": (
        {**MLA_SIZES, "n_routed_experts": 6, "moe_intermediate_size": 12, "first_k_dense_replace": 1, "n_group": 1,
         "topk_group": 1},
        f"{MLA} {GATED_MLP} {STACKS} {SHARED}",
        "embed_tokens mlp.gate lm_head",
    ),
    "granitemoe": (
        {"num_local_experts": 6},
        f"{ATTENTION} block_sparse_moe.experts.gate_up_proj block_sparse_moe.experts.down_proj",
        "embed_tokens block_sparse_moe.router lm_head",
    ),
    "llama4_text": (
        {"num_local_experts": 6, "intermediate_size_mlp": 48},
        f"{ATTENTION} feed_forward.experts.gate_up_proj feed_forward.experts.down_proj "
        "feed_forward.shared_expert.gate_proj feed_forward.shared_expert.up_proj feed_forward.shared_expert.down_proj",
        "embed_tokens feed_forward.router lm_head",
    ),
    "gemma4_text": (
        {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 12,
         "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
        f"{ATTENTION} {GATED_MLP} experts.gate_up_proj experts.down_proj per_layer_input_gate per_layer_projection",
        "embed_tokens embed_tokens_per_layer per_layer_model_projection router.proj",
    ),
    "zaya": (
        EXPERTS | {"num_experts_per_tok": 1, "router_hidden_size": 10},
        "self_attn.qkv_proj.q_proj self_attn.qkv_proj.k_proj self_attn.qkv_proj.v_proj_current "
        f"self_attn.qkv_proj.v_proj_delayed self_attn.o_proj {STACKS}",
        "embed_tokens self_attn.qkv_proj.conv_qk_depthwise self_attn.qkv_proj.conv_qk_grouped mlp.gate.down_proj "
        "mlp.gate.router_mlp.fc1 mlp.gate.router_mlp.fc2 mlp.gate.router_mlp.out_proj",
    ),
    "jetmoe": (
        {"kv_channels": 8, "num_local_experts": 6},
        "self_attention.experts.input_linear self_attention.experts.output_linear self_attention.kv_proj "
        "mlp.input_linear mlp.output_linear",
        "embed_tokens self_attention.experts.router.layer mlp.router.layer",
    ),
    "mamba": (
        {},
        "mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj",
        "embeddings mixer.A_log mixer.conv1d",
    ),
    "jamba": (
        {"num_experts": 6, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "use_mamba_kernels": False},
        f"{ATTENTION} {JAMBA} {JAMBA_MLP} feed_forward.experts.gate_up_proj feed_forward.experts.down_proj",
        "embed_tokens mamba.A_log mamba.conv1d feed_forward.router lm_head",
    ),
    "qwen3_next": (
        EXPERTS | {"shared_expert_intermediate_size": 20, "layer_types": ["linear_attention", "full_attention"]},
        f"{ATTENTION} linear_attn.in_proj_qkvz linear_attn.in_proj_ba linear_attn.out_proj {STACKS} {SHARED_QWEN}",
        "embed_tokens linear_attn.conv1d mlp.gate mlp.shared_expert_gate lm_head",
    ),
}  # fmt: skip

# Stacks that are [experts, in, out]; those of all other families are [experts, out, in].
INPUTS_ARE_ROWS = {"gpt_oss", "llama4_text"}


def make_model(family: str, **changes: Any) -> PreTrainedModel:
    """Return a model of ``family`` whose weights take no memory."""
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES[family][0], **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def kind(name: str) -> str:
    """Return ``name`` without what leads to a block and without numbers."""
    return re.split(r"\.\d+\.", name)[-1] if re.search(r"\.\d+\.", name) else name.rsplit(".", 1)[-1]


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.mark.parametrize("family", FAMILIES)
def test_by_default_the_matrices_of_attention_and_mlp_are_targets_whatever_the_family(family: str) -> None:
    found = {kind(target.name) for target in find_targets(make_model(family))}

    assert found == set(FAMILIES[family][1].split())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out_is_a_router_an_embedding_a_head_or_a_convolution(family: str) -> None:
    model = make_model(family)

    trained = {target_parameter(model, target) for target in find_targets(model)}

    left = {name for name, weight in model.named_parameters() if weight.ndim > 1 and weight not in trained}
    assert {kind(name.removesuffix(".weight")) for name in left} == set(FAMILIES[family][2].split())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_covered_and_targets_come_in_the_order_of_the_model(family: str) -> None:
    model = make_model(family)

    targets = find_targets(model)

    blocks = {int(match[1]) for target in targets if (match := re.search(r"\.(\d+)\.", target.name))}
    order = {name: position for position, name in enumerate(dict(model.named_parameters()))}
    positions = [order[f"{target.module_name}.{target.parameter_name}"] for target in targets]
    assert blocks == {0, 1}
    assert positions == sorted(positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_of_experts_is_that_of_their_multiplication(family: str) -> None:
    model = make_model(family)

    stacks = [target for target in find_targets(model) if target_parameter(model, target).ndim == 3]

    assert all(target.inputs_are_columns == (family not in INPUTS_ARE_ROWS) for target in stacks)


@pytest.mark.parametrize("intermediate_size", [12, 16, 32, 64])
@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "llama4_text", "jetmoe"])
def test_the_layout_of_experts_is_known_where_one_of_their_matrices_is_square(
    family: str, intermediate_size: int
) -> None:
    model = make_model(family, intermediate_size=intermediate_size)

    stacks = [target for target in find_targets(model) if target_parameter(model, target).ndim == 3]

    assert stacks
    assert all(target.inputs_are_columns == (family not in INPUTS_ARE_ROWS) for target in stacks)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "zaya"])
def test_a_router_is_known_where_there_are_as_many_experts_as_hidden_values(family: str) -> None:
    count = {"num_experts" if family == "zaya" else "num_local_experts": SIZES["hidden_size"]}

    found = {kind(target.name) for target in find_targets(make_model(family, **count))}

    assert found == set(FAMILIES[family][1].split())


def test_experts_in_a_list_are_targets_and_the_linear_layer_that_chooses_among_them_is_not() -> None:
    model = make_model("llama")
    for block in model.model.layers:
        block.mlp = nn.ModuleDict(
            {
                "gate": nn.Linear(32, 6),
                "experts": nn.ModuleList(
                    nn.ModuleDict({"w1": nn.Linear(32, 48), "w2": nn.Linear(48, 32)}) for _ in range(6)
                ),
            }
        )

    targets = find_targets(model, ["mlp"])

    assert len(targets) == 2 * 6 * 2
    assert {target.name.rsplit(".", 1)[-1] for target in targets} == {"w1", "w2"}


def test_experts_without_a_gate_behind_a_latent_projection_are_targets_as_is_the_projection() -> None:
    config = CONFIG_MAPPING["nemotron_h"](
        **SIZES, layers_block_type=["moe"], n_routed_experts=6, moe_latent_size=16, moe_intermediate_size=12,
        moe_shared_expert_intermediate_size=20, n_groups=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    targets = find_targets(model)

    assert {kind(target.name) for target in targets} == {
        "mixer.fc1_latent_proj", "mixer.experts.up_proj", "mixer.experts.down_proj", "mixer.shared_experts.up_proj",
        "mixer.shared_experts.down_proj", "mixer.fc2_latent_proj",
    }  # fmt: skip
    assert all(target.inputs_are_columns for target in targets)


def test_of_a_multimodal_model_the_language_model_is_trained() -> None:
    text = {**SIZES, "query_pre_attn_scalar": 8}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    targets = find_targets(model)

    assert len(targets) == 14
    assert all(target.module_name.startswith("model.language_model.layers.") for target in targets)


def test_linear_layers_and_conv1d_say_which_side_their_inputs_are_on() -> None:
    linears, conv1ds = find_targets(make_model("llama")), find_targets(make_model("gpt2"))

    assert all(target.inputs_are_columns for target in linears)
    assert not any(target.inputs_are_columns for target in conv1ds)


def test_a_stack_of_experts_is_named_with_its_parameter() -> None:
    targets = find_targets(make_model("qwen3_moe"), [r"layers\.0\.mlp"])

    assert targets[0] == Target(
        module_name="model.layers.0.mlp.experts", parameter_name="gate_up_proj", inputs_are_columns=True
    )
    assert targets[0].name == "model.layers.0.mlp.experts.gate_up_proj"


def test_weights_that_blocks_share_count_once_and_are_held_by_all_of_them() -> None:
    model = make_model("llama")
    first, second = model.model.layers
    second.mlp = first.mlp
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight

    targets = find_targets(model)

    names = [target.name for target in targets]
    assert len(names) == 10
    assert "model.layers.1.self_attn.q_proj" not in names
    held = holders(model, targets[names.index("model.layers.0.self_attn.q_proj")])
    assert held == [(first.self_attn.q_proj, "weight"), (second.self_attn.q_proj, "weight")]


def test_a_shared_weight_is_found_by_its_second_name_too() -> None:
    model = make_model("llama")
    first, second = model.model.layers
    second.mlp = first.mlp

    targets = find_targets(model, [r"layers\.1\.mlp\.up_proj"])

    assert [target.name for target in targets] == ["model.layers.1.mlp.up_proj"]


def test_target_patterns_are_regular_expressions_over_names(model: PreTrainedModel) -> None:
    targets = find_targets(model, [r"layers\.1\..*\.[qv]_proj$"])

    assert [target.name for target in targets] == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_a_pattern_reaches_a_linear_layer_outside_the_blocks() -> None:
    model = make_model("gemma4_text")

    targets = find_targets(model, ["per_layer_model_projection"])

    assert [target.name for target in targets] == ["model.per_layer_model_projection"]


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_candidates(model: PreTrainedModel) -> None:
    with pytest.raises(
        ConfigError, match=r"target_patterns=\['query'\] matches no linear.*layers\.0\.self_attn\.q_proj"
    ) as error:
        find_targets(model, ["query"])

    assert str(error.value).count("model.layers.") == 14


def test_no_more_than_twenty_candidates_are_listed() -> None:
    with pytest.raises(ConfigError) as error:
        find_targets(make_model("llama", num_hidden_layers=4), ["query"])

    assert str(error.value).count("model.layers.") == 20


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens", r"mlp\.gate$", "shared_expert_gate"])
def test_no_pattern_can_make_head_embeddings_or_router_a_target(pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches no linear"):
        find_targets(make_model("qwen2_moe"), [pattern])


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("llama4_text", "router"), ("jetmoe", "router"), ("zaya", r"mlp\.gate"), ("gemma4_text", r"\.router")],
)
def test_no_pattern_can_make_a_router_that_is_built_of_linear_layers_a_target(family: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches no linear"):
        find_targets(make_model(family), [pattern])


def test_a_model_without_blocks_is_an_error_by_default() -> None:
    model = make_model("llama")
    model.model.layers = nn.ModuleList()

    with pytest.raises(ConfigError, match=r"the default matches no linear layer of LlamaForCausalLM.*it has none"):
        find_targets(model)
