"""What may move in the model that a run leaves, for every way of protecting it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from osft import osft
from osft.errors import ConfigError, MissingPathError
from osft.subspace.decomposition import frozen_rank
from osft.training.result import TrainingResult

# Square, wide and tall, with bias, and keys and values smaller than queries.
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    initializer_range=0.2,
)  # fmt: skip


def save_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        for length in (20, 14, 9, 24, 17, 12, 30, 8):
            ids = generator.integers(0, CONFIG.vocab_size, length).tolist()
            file.write(orjson.dumps({"input_ids": ids, "labels": ids}, option=orjson.OPT_APPEND_NEWLINE))
    return path


def train(base: Path, rows: Path, output: Path, **changes: Any) -> TrainingResult:
    return osft(
        **{
            "model_path": base, "data_path": rows, "ckpt_output_dir": output, "use_processed_dataset": True,
            "unfreeze_rank_ratio": 0.25, "effective_batch_size": 4, "max_tokens_per_gpu": 128, "max_seq_len": 64,
            "learning_rate": 0.02, "num_epochs": 2, "nproc_per_node": 1, **changes,
        }
    )  # fmt: skip


def updates(base: Path, result: TrainingResult) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight before and update, float64, of everything in the checkpoint."""
    assert result.final_checkpoint is not None
    before, after = load_file(base / "model.safetensors"), load_file(result.final_checkpoint / "model.safetensors")
    assert before.keys() == after.keys()
    return {name: (before[name].double(), after[name].double() - before[name].double()) for name in before}


def is_target(name: str) -> bool:
    return name.endswith("_proj.weight")


def protected_norm(weight: Tensor, update: Tensor, ratio: float) -> float:
    """Return the larger norm of what ``update`` holds of the leading left or right directions of ``weight``."""
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    rank = frozen_rank(*weight.shape, ratio)
    return max((left[:, :rank].T @ update).norm().item(), (update @ right[:rank].T).norm().item())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_invariants_hold_in_the_saved_float32_checkpoint(
    base: Path, rows: Path, tmp_path: Path, ratio: float
) -> None:
    result = train(base, rows, tmp_path / "out", unfreeze_rank_ratio=ratio)

    for name, (weight, update) in updates(base, result).items():
        if is_target(name) and ratio > 0:
            assert protected_norm(weight, update, ratio) <= 1e-5 * update.norm(), name
            free = min(weight.shape) - frozen_rank(*weight.shape, ratio)
            assert torch.linalg.matrix_rank(update, rtol=1e-4) == free, name
        else:
            assert not update.any(), name


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_invariants_hold_in_a_bfloat16_checkpoint_to_the_rounding_of_the_weight(
    tmp_path: Path, rows: Path, ratio: float
) -> None:
    base = save_base(tmp_path / "bfloat16", torch.bfloat16)

    result = train(base, rows, tmp_path / "out", unfreeze_rank_ratio=ratio)

    for name, (weight, update) in updates(base, result).items():
        if is_target(name) and ratio > 0:
            # bfloat16 keeps 8 bits: an entry is off by at most 2^-9 of itself.
            assert protected_norm(weight, update, ratio) <= 2**-9 * (weight + update).norm(), name
            assert update.any(), name
        else:
            assert not update.any(), name


@pytest.mark.parametrize("weights_too", [True, False])
def test_protected_inputs_are_answered_as_before(base: Path, rows: Path, tmp_path: Path, weights_too: bool) -> None:
    text = tmp_path / "text.jsonl"
    # Few tokens, so that their inputs span less than what is protected.
    ids = [3, 1, 4, 1, 5, 9]
    text.write_bytes(orjson.dumps({"input_ids": ids, "labels": ids}))

    result = train(base, rows, tmp_path / "out", protect_inputs_of=text, protect_weights=weights_too)

    inputs = {}
    model = AutoModelForCausalLM.from_pretrained(base)
    layer = model.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda module, arguments: inputs.update(first=arguments[0][0].double()))
    model(torch.tensor([ids]))
    _, update = updates(base, result)["model.layers.0.self_attn.q_proj.weight"]
    change = (inputs["first"] @ update.T).norm() / (inputs["first"].norm() * update.norm())
    # Alone, the six inputs are all within what is protected; joined with the weights' directions most of them is.
    assert change <= (0.1 if weights_too else 1e-5)
    assert update.any()


def test_other_parameters_move_when_asked_for(base: Path, rows: Path, tmp_path: Path) -> None:
    result = train(base, rows, tmp_path / "out", train_other_parameters=True)

    still = {name for name, (_, update) in updates(base, result).items() if not update.any()}
    # A key's bias shifts all scores of a query alike: rounding may move it, the loss does not.
    assert {name for name in still if not name.endswith("k_proj.bias")} == set()


def test_the_factored_reference_keeps_the_same_invariants(base: Path, rows: Path, tmp_path: Path) -> None:
    result = train(base, rows, tmp_path / "out", parametrization="factored")

    for name, (weight, update) in updates(base, result).items():
        if is_target(name):
            assert update.any(), name
            assert protected_norm(weight, update, 0.25) <= 1e-5 * weight.norm(), name
        else:
            assert not update.any(), name


def test_save_memory_changes_the_result_by_the_precision_of_the_moments(base: Path, rows: Path, tmp_path: Path) -> None:
    plain = updates(base, train(base, rows, tmp_path / "plain", num_epochs=10))
    saving = updates(base, train(base, rows, tmp_path / "saving", num_epochs=10, save_memory=True))

    for name, (_, update) in plain.items():
        assert (saving[name][1] - update).norm() <= 0.05 * update.norm(), name


def test_adaptive_ranks_free_more_in_one_layer_than_in_the_other(base: Path, rows: Path, tmp_path: Path) -> None:
    result = train(base, rows, tmp_path / "out", rank_allocation="adaptive", unfreeze_rank_ratio=0.5)

    moved = updates(base, result)
    ranks = [
        int(torch.linalg.matrix_rank(moved[f"model.layers.{layer}.self_attn.q_proj.weight"][1], rtol=1e-4))
        for layer in range(2)
    ]
    assert ranks[0] != ranks[1]
    assert sum(ranks) == pytest.approx(32, abs=2)


def test_a_second_run_reads_its_decompositions_and_ends_the_same(
    base: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    cache = tmp_path / "cache"

    runs = [train(base, rows, tmp_path / name, decomposition_cache=cache) for name in ("first", "second")]

    files = [run.final_checkpoint / "model.safetensors" for run in runs if run.final_checkpoint]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "decomposed 14 of 14 weights" in caplog.text
    assert "14 of them read from the cache" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrization": "dense"}, r"parametrization='dense' is not one of linear, factored"),
        ({"rank_allocation": "even"}, r"rank_allocation='even' is not one of uniform, adaptive"),
        ({"protect_weights": False}, r"protect_weights=False leaves nothing that is protected. Give protect_inputs_of"),
        ({"save_memory": True, "beta2": 0.999}, r"beta2=0.999: save_memory=True holds at most 0.99"),
        ({"save_memory": True, "parametrization": "factored"}, r"save_memory=True is for parametrization='linear'"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(base, rows, tmp_path / "out", **changes)


def test_a_missing_text_to_protect_is_found_before_anything_is_loaded(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="protect_inputs_of '.*text' does not exist"):
        train(base, rows, tmp_path / "out", protect_inputs_of=tmp_path / "text")
