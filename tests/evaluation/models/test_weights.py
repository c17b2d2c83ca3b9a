import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3ForCausalLM,
)

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.source import ModelSource, find_model
from osft.evaluation.models.weights import check_nothing_missing

CONFIG = EvaluationConfig(tasks=("anything",))
TEXT_PART = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN_TEXT_PART = TEXT_PART | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 0, 0]},
}
QWEN_PICTURES = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
PICTURE_MODELS: dict[str, tuple[type[PreTrainedModel], Callable[[], PreTrainedConfig]]] = {
    "qwen3_5": (
        Qwen3_5ForConditionalGeneration,
        lambda: Qwen3_5Config(text_config=QWEN_TEXT_PART, vision_config=QWEN_PICTURES),
    ),
    "qwen3_5_moe": (
        Qwen3_5MoeForConditionalGeneration,
        lambda: Qwen3_5MoeConfig(
            text_config=QWEN_TEXT_PART
            | {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
            },
            vision_config=QWEN_PICTURES,
        ),
    ),
    "llama4": (
        Llama4ForConditionalGeneration,
        lambda: Llama4Config(
            text_config=TEXT_PART | {"intermediate_size_mlp": 64, "num_local_experts": 2, "num_experts_per_tok": 1},
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
        ),
    ),
}


@pytest.fixture
def folder(tmp_path: Path, base_model: Path) -> Path:
    return Path(shutil.copytree(base_model, tmp_path / "model"))


def find(name: Path | str) -> ModelSource:
    return find_model(str(name), CONFIG)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_in_another_format_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(EvaluationError, match="there are no weights .*; pytorch_model.bin is in another format"):
        find(folder)


def test_missing_shard_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )

    with pytest.raises(EvaluationError, match=r"2 of 2 weight files are missing \(one.safetensors\)"):
        find(folder)


def test_index_that_is_cut_off_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.sa')

    with pytest.raises(EvaluationError, match="model.safetensors.index.json is no index of weights"):
        find(folder)


def test_shards_are_found_by_their_index(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, folder / f"{number}.safetensors")
    index = {name: f"{int(place >= 5)}.safetensors" for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "model.safetensors").unlink()

    source = find(folder)

    assert source.folder == folder


def test_weights_that_are_cut_off_are_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(EvaluationError, match="model.safetensors is cut off or no safetensors file"):
        find(folder)


def test_weights_that_are_not_there_are_an_error_and_not_random(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))

    with pytest.raises(EvaluationError, match=r"1 weights of the model are not .* \(model.layers.1.mlp.up_proj"):
        find(folder)


def test_masked_language_model_lacks_the_weights_of_a_causal_one(folder: Path) -> None:
    BertConfig(vocab_size=259).save_pretrained(folder)

    with pytest.raises(EvaluationError, match="weights of the model are not in its safetensors files"):
        find(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(5)}))

    with pytest.raises(
        EvaluationError, match=r"1 weights have another shape .* \(model.norm.weight: \[5\], not \[32\]\). Save both"
    ):
        find(folder)


def test_configuration_that_describes_no_model_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": -1}))

    with pytest.raises(
        EvaluationError, match=r"the weights do not fit config.json: .* \(Trying to create tensor with neg"
    ):
        find(folder)


def test_weights_that_the_model_has_no_place_for_are_warned_of_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (folder / "config.json").write_text(json.dumps(config))

    with caplog.at_level(logging.WARNING):
        find(folder)

    (message,) = caplog.messages
    assert "11 weights in its files are not used" in message
    assert "(model.layers.1.input_layernorm.weight). Check that config.json is this checkpoint's own." in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "h.0.attn.bias",
        "h.0.attn.masked_bias",
        "gpt_neox.layers.0.attention.bias",
        "mtp.layers.0.mlp.up_proj.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "vision_model.class_embedding",
        "multi_modal_projector.linear.weight",
    ],
)
def test_weights_that_no_language_model_needs_are_not_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(5)}))

    with caplog.at_level(logging.WARNING):
        find(folder)

    assert not caplog.messages


def test_weights_that_were_made_up_while_loading_are_an_error() -> None:
    loading: dict[str, Any] = {"missing_keys": {"norm"}, "mismatched_keys": set()}

    with pytest.raises(EvaluationError, match=r"model 'x': 1 weights of the model are not .* \(norm\)"):
        check_nothing_missing("x", loading)


@pytest.mark.parametrize("kind", PICTURE_MODELS)
def test_text_part_of_a_model_that_reads_pictures_is_checked(
    kit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    model_class, make_config = PICTURE_MODELS[kind]
    model_class(make_config()).save_pretrained(tmp_path)
    kit.byte_tokenizer().save_pretrained(tmp_path)

    with caplog.at_level(logging.WARNING):
        source = find(tmp_path)
    gone = next(
        name for name in load_file(tmp_path / "model.safetensors") if "language_model" in name and "norm" in name
    )
    change_weights(tmp_path, lambda weights: weights.pop(gone))

    assert source.vocabulary_size == 259
    assert not caplog.messages
    with pytest.raises(EvaluationError, match="1 weights of the model are not in its safetensors files"):
        find(tmp_path)


def read_a_weight(model: Qwen3ForCausalLM) -> None:
    model.lm_head.weight.sum().item()


def copy_a_weight(model: Qwen3ForCausalLM) -> None:
    model.lm_head.weight.to("cpu")


def use_what_is_not_there(model: Qwen3ForCausalLM) -> None:
    model.config.text_config.layers["first"]


@pytest.mark.parametrize("work", [read_a_weight, copy_a_weight, use_what_is_not_there])
def test_model_that_cannot_be_made_without_memory_is_left_to_the_check_after_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Qwen3ForCausalLM], None]
) -> None:
    monkeypatch.setattr(Qwen3ForCausalLM, "post_init", work)

    source = find(folder)

    assert source.folder == folder
