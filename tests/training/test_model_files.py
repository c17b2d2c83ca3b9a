"""What is saved is what the base's files hold, with the trained weights in their places, and costs no second copy."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import Chunk, WeightConverter

from osft.errors import MissingPathError, TrainingError
from osft.subspace.attach import attach, merge, plain_state
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.targets import find_targets
from osft.training.model_files import LoadedModel, load_model, save_model, use_flash_attention

CPU = torch.device("cpu")
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    # A head that shares the weight of the embeddings.
    "tied": lambda: Qwen3Config(**GROUPED, intermediate_size=48, tie_word_embeddings=True),
    # Experts stored one by one and computed as one tensor.
    "experts": lambda: Qwen3MoeConfig(
        **GROUPED, intermediate_size=48, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2
    ),
    # Experts stored as one tensor, input first; sinks.
    "fused experts": lambda: GptOssConfig(
        **GROUPED, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=1
    ),
    # Conv1D: weights stored input first.
    "conv1d": lambda: GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    ),
}


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a model of every family, float32."""
    folder = tmp_path / "base"
    make_model(FAMILIES[request.param]()).save_pretrained(folder)
    return folder


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Put other weights into ``folder`` and return them."""
    changed = {name: change(name, tensor) for name, tensor in weights(folder).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return changed


def to_mixed_dtypes(name: str, tensor: Tensor) -> Tensor:
    """Store norms and one expert in float32 and float16, the rest in bfloat16, as some published models do."""
    if "norm" in name or "ln_" in name:
        return tensor
    return tensor.half() if "experts.1." in name else tensor.bfloat16()


def train(model: PreTrainedModel) -> None:
    """Attach to every default target and move it at random."""
    attach(model, find_targets(model), lambda _, weight: protect_leading_directions(weight, 0.5))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    merge(model)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None], use_cache=False).logits


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> Iterator[tuple[str, bool]]:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        yield name, tensor.dtype == right[name].dtype and torch.equal(tensor, right[name])


@pytest.mark.parametrize("trained", [False, True])
def test_a_saved_model_loaded_again_computes_the_same_to_the_last_bit(
    base: Path, tmp_path: Path, trained: bool
) -> None:
    loaded = load_model(str(base), CPU)
    if trained:
        train(loaded.model)

    save_model(loaded, str(base), tmp_path / "saved")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(again), logits(loaded.model))
    assert torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(base))) != trained


def test_what_did_not_train_is_written_in_the_names_dtypes_and_values_of_the_base(base: Path, tmp_path: Path) -> None:
    stored = rewrite(base, to_mixed_dtypes)

    save_model(load_model(str(base), CPU), str(base), tmp_path / "saved")

    assert all(equal for _, equal in same(weights(tmp_path / "saved"), stored))


def test_what_trained_is_rounded_to_the_dtype_of_the_base_and_the_rest_is_as_it_was(base: Path, tmp_path: Path) -> None:
    stored = rewrite(base, to_mixed_dtypes)
    loaded = load_model(str(base), CPU)
    train(loaded.model)

    save_model(loaded, str(base), tmp_path / "saved")

    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference.load_state_dict(plain_state(loaded.model))
    reference.save_pretrained(tmp_path / "reference")
    expected = {name: tensor.to(stored[name].dtype) for name, tensor in weights(tmp_path / "reference").items()}
    saved = weights(tmp_path / "saved")
    assert all(equal for _, equal in same(saved, expected))
    moved = {name for name, equal in same(saved, stored) if not equal}
    assert moved
    assert not any(part in name for name in moved for part in ("norm", "ln_", "embed", "wte", "lm_head", "router"))


def test_weights_stored_without_the_prefix_of_the_model_with_a_head_keep_their_dtypes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    torch.manual_seed(0)
    AutoModel.from_config(FAMILIES["conv1d"]()).save_pretrained(base)
    stored = rewrite(base, to_mixed_dtypes)

    save_model(load_model(str(base), CPU), str(base), tmp_path / "saved")

    saved = {name.removeprefix("transformer."): tensor for name, tensor in weights(tmp_path / "saved").items()}
    assert all(equal for _, equal in same(saved, stored))


def test_a_model_of_more_than_one_file_has_an_index_and_loads_whole(base: Path, tmp_path: Path) -> None:
    loaded = load_model(str(base), CPU)

    save_model(loaded, str(base), tmp_path / "saved", max_file_bytes=20_000)

    index = orjson.loads((tmp_path / "saved" / "model.safetensors.index.json").read_bytes())
    files = sorted(file.name for file in (tmp_path / "saved").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert all(equal for _, equal in same(weights(tmp_path / "saved"), weights(base)))
    assert torch.equal(logits(load_model(str(tmp_path / "saved"), CPU).model), logits(loaded.model))


def test_weights_that_a_family_stores_across_blocks_are_put_together(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model), CPU)
    norms = [f"model.layers.{block}.input_layernorm.weight" for block in range(2)]
    # No family of transformers 5.23 does so, but its conversions could.
    loaded.model._weight_conversions = [WeightConverter("model.all_norms.weight", norms, [Chunk(dim=0)])]

    save_model(loaded, str(tiny_model), tmp_path / "saved")

    base, saved = weights(tiny_model), weights(tmp_path / "saved")
    assert torch.equal(saved["model.all_norms.weight"], torch.cat([base[name] for name in norms]))
    assert saved.keys() == base.keys() - set(norms) | {"model.all_norms.weight"}


def test_numbers_that_are_no_floats_and_values_without_dimensions_are_written(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model), CPU)
    loaded.model.register_buffer("seen_tokens", torch.tensor(2**40))
    loaded.model.register_buffer("kept", torch.tensor([True, False, True]))

    save_model(loaded, str(tiny_model), tmp_path / "saved")

    saved = weights(tmp_path / "saved")
    assert torch.equal(saved["seen_tokens"], torch.tensor(2**40))
    assert torch.equal(saved["kept"], torch.tensor([True, False, True]))
    assert torch.equal(saved["model.norm.weight"], weights(tiny_model)["model.norm.weight"])


def test_each_tensor_lies_at_a_multiple_of_its_width(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model), CPU)
    loaded.model.register_buffer("odd", torch.tensor([True]))

    save_model(loaded, str(tiny_model), tmp_path / "saved")

    data = (tmp_path / "saved" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = orjson.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header["odd"]["data_offsets"][1] == len(data) - 8 - length
    with safe_open(tmp_path / "saved" / "model.safetensors", framework="pt") as file:
        for name, entry in header.items():
            assert (8 + length + entry["data_offsets"][0]) % file.get_tensor(name).itemsize == 0


def test_the_folder_is_replaced_whole_readable_for_the_group_and_has_the_tokenizer(
    tiny_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "models" / "saved"
    for leftover in (target, target.with_name(".saved.partial")):
        leftover.mkdir(parents=True)
        (leftover / "model-00001-of-00002.safetensors").write_text("from an earlier run")

    save_model(load_model(str(tiny_model), CPU), str(tiny_model), target)

    assert [path.name for path in target.parent.iterdir()] == ["saved"]
    assert {path.name for path in target.iterdir()} == {path.name for path in tiny_model.iterdir()}
    assert all(file.stat().st_mode & 0o777 == 0o664 for file in target.iterdir())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (tiny_model / name).read_bytes()


def test_the_configuration_names_the_stored_dtype_and_the_model_goes_on_unchanged(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_model(FAMILIES["tied"]()).bfloat16().save_pretrained(base)
    loaded = load_model(str(base), CPU)
    train(loaded.model)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    config = loaded.model.config.to_dict()

    save_model(loaded, str(base), tmp_path / "saved")

    saved = orjson.loads((tmp_path / "saved" / "config.json").read_bytes())
    assert saved == orjson.loads((base / "config.json").read_bytes())
    assert saved["dtype"] == "bfloat16"
    assert loaded.model.config.to_dict() == config
    assert all(equal for _, equal in same(loaded.model.state_dict(), before))


# A mixture of experts of 100 MB in bfloat16, 200 MB in float32: its weights are both rearranged and rounded. Made with
# random weights in place: what loading a file leaves behind would hide the growth.
MEASURED_SAVE = """
import resource, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from osft.training.model_files import LoadedModel, save_model

config = Qwen3MoeConfig(
    vocab_size=1000, hidden_size=512, num_attention_heads=8, num_key_value_heads=8, head_dim=64,
    num_hidden_layers=19, moe_intermediate_size=128, num_experts=8,
)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
stored = dict.fromkeys(model.state_dict(), torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_model(LoadedModel(model=model, stored_dtypes=stored), sys.argv[1], Path(sys.argv[1]) / "saved")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_saving_needs_no_second_copy_of_the_model(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED_SAVE, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    growth_bytes = int(output.split()[-1]) * 1024
    stored_bytes = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert stored_bytes > 90_000_000
    # The weights of one block take 4 MB; the rest is what Python imports and the allocator keeps.
    assert growth_bytes < stored_bytes / 4


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    make_model(FAMILIES["tied"]()).config.save_pretrained(tmp_path / "empty")

    with pytest.raises(TrainingError, match="holds no safetensors weights. Save the model with save_pretrained"):
        load_model(str(tmp_path / "empty"), CPU)


def test_a_folder_of_another_kind_of_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    (other / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())

    with pytest.raises(TrainingError, match="other' is not a causal language model"):
        load_model(str(other), CPU)


def test_a_name_that_is_neither_folder_nor_hub_id_is_a_missing_path() -> None:
    with pytest.raises(MissingPathError, match="is neither a folder nor a Hugging Face id"):
        load_model("no/such/model/here", CPU)


def test_a_loaded_model_lies_on_the_device_asked_for_without_hooks(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), CPU).model

    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {CPU}
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())


def test_a_weight_that_the_files_lack_has_the_commonest_dtype(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model), CPU)
    dtypes = {"a": torch.float16, "b": torch.bfloat16, "c": torch.bfloat16}

    mixed = LoadedModel(model=loaded.model, stored_dtypes=dtypes)

    assert mixed.stored_dtype("a") == torch.float16
    assert mixed.stored_dtype("model.a") == torch.float16
    assert mixed.stored_dtype("d") == torch.bfloat16


def test_a_target_that_cannot_be_written_is_an_error_that_names_it(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model), torch.device("cpu"))
    in_the_way = tmp_path / "file"
    in_the_way.touch()

    with pytest.raises(TrainingError, match=r"file/final: the model cannot be saved .*Make room there"):
        save_model(loaded, str(tiny_model), in_the_way / "final")


def test_a_model_keeps_its_attention_where_flash_attn_cannot_be_had(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    loaded = load_model(str(tiny_model), torch.device("cpu"))

    use_flash_attention(loaded.model)

    assert loaded.model.config._attn_implementation == "sdpa"
    assert "Qwen3ForCausalLM: no flash-attn, but sdpa" in caplog.text
