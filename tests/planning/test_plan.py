"""The plan of a run: what it counts, and whether it fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from osft.config import TrainingConfig
from osft.errors import ConfigError, MissingPathError
from osft.planning import plan as planning
from osft.planning.memory_plan import BYTES_PER_GIB, RESERVED_GIB
from osft.planning.plan import config_to_plan, plan_training, read_gpu_memory, require_memory
from osft.planning.simulation import GATHERED, MERGED, MOMENTS, TRAINED, WEIGHTS
from osft.subspace.attach import attach
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.targets import find_targets
from tests.planning.conftest import printed


def make_config(model_folder: Path, **options: object) -> TrainingConfig:
    values = {"unfreeze_rank_ratio": 0.25, "max_tokens_per_gpu": 1024, **options}
    return config_to_plan(str(model_folder), **values)


def test_the_trained_values_are_those_of_the_real_engine(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_config(planning.load_model_config(str(model_folder)), dtype=torch.float32)
    attach(model, find_targets(model), lambda _, weight: protect_leading_directions(weight, 0.25))

    plan = plan_training(make_config(model_folder), on_gpu=True)

    real = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan.trained_values == real
    assert plan.parts_gib[TRAINED] * BYTES_PER_GIB == 4 * real
    assert plan.parts_gib[MOMENTS] * BYTES_PER_GIB == pytest.approx(8 * real, rel=1e-3)


def test_a_gpu_keeps_weights_in_bfloat16_and_few_activations(model_folder: Path) -> None:
    on_gpu = plan_training(make_config(model_folder), on_gpu=True)
    on_cpu = plan_training(make_config(model_folder), on_gpu=False)

    # The frequencies of the rotary embedding stay float32.
    assert on_gpu.parts_gib[WEIGHTS] == pytest.approx(on_cpu.parts_gib[WEIGHTS] / 2, rel=1e-3)
    assert on_gpu.total_gib < on_cpu.total_gib / 2


def test_saving_memory_moves_base_weights_to_the_host_and_halves_the_moments(model_folder: Path) -> None:
    plan = plan_training(make_config(model_folder), on_gpu=True)
    saving = plan_training(make_config(model_folder, save_memory=True), on_gpu=True)

    assert plan.host_gib == 0
    # The host holds what the merged weights replace, and the directions that are needed once a step.
    assert saving.host_gib > plan.parts_gib[MERGED]
    assert saving.parts_gib[WEIGHTS] == pytest.approx(plan.parts_gib[WEIGHTS] - plan.parts_gib[MERGED], rel=1e-3)
    assert saving.parts_gib[MOMENTS] == pytest.approx(plan.parts_gib[MOMENTS] / 2, rel=1e-3)


def test_training_everything_keeps_float32_copies(model_folder: Path) -> None:
    plan = plan_training(make_config(model_folder), on_gpu=True)
    everything = plan_training(make_config(model_folder, train_other_parameters=True), on_gpu=True)

    others = everything.trained_values - plan.trained_values
    assert others >= 2 * 2000 * 256
    assert everything.total_gib > plan.total_gib + 16 * others / BYTES_PER_GIB


def test_attention_holds_no_matrix_of_all_pairs_of_tokens(model_folder: Path) -> None:
    half = plan_training(make_config(model_folder, max_tokens_per_gpu=8192), on_gpu=True)
    whole = plan_training(make_config(model_folder, max_tokens_per_gpu=16384), on_gpu=True)

    assert whole.total_gib < 2.05 * half.total_gib


def test_experts_are_planned(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=100, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)

    plan = plan_training(make_config(tmp_path), on_gpu=True)

    assert plan.trained_values > 0
    assert plan.fits is None


def test_a_config_file_is_as_good_as_its_folder(model_folder: Path) -> None:
    of_folder = plan_training(make_config(model_folder), on_gpu=True)

    assert plan_training(make_config(model_folder / "config.json"), on_gpu=True) == of_folder


def test_a_run_that_cannot_fit_is_refused_with_the_numbers(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(model_folder)
    card_gib = 0.9 * plan_training(config, on_gpu=True).total_gib + RESERVED_GIB
    monkeypatch.setattr(planning, "memory_at_hand_gib", lambda _: card_gib)

    with pytest.raises(
        ConfigError, match=rf"does not fit. Needs \d+\.\d GiB on each GPU, more than the card's {card_gib:.1f}"
    ):
        require_memory(config)


def test_a_run_that_fits_is_not_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "memory_at_hand_gib", lambda _: 80.0)

    require_memory(make_config(model_folder))


def test_a_run_that_fits_only_on_all_of_its_gpus_is_not_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {"nproc_per_node": 2, "nnodes": 2, "rdzv_id": 1, "rdzv_endpoint": "localhost:1"}
    config = make_config(model_folder, max_tokens_per_gpu=16, **nodes)
    on_four, on_one = (plan_training(config, on_gpu=True, world_size=count).total_gib for count in (4, 1))
    monkeypatch.setattr(planning, "memory_at_hand_gib", lambda _: 1.01 * on_four + RESERVED_GIB)

    require_memory(config)

    assert on_four < 0.7 * on_one


def test_a_micro_batch_is_planned_no_larger_than_the_effective_batch(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(model_folder, max_tokens_per_gpu=64, max_seq_len=64)
    needed = plan_training(config, on_gpu=True).total_gib
    monkeypatch.setattr(planning, "memory_at_hand_gib", lambda _: 1.01 * needed + RESERVED_GIB)

    # One row of 64 tokens a step: there is nothing that could fill more.
    require_memory(replace(config, max_tokens_per_gpu=65536))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_the_stored_weights_and_not_the_configuration_say_the_dtype(
    model_folder: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_config(planning.load_model_config(str(model_folder)))
    model.to(stored).save_pretrained(tmp_path / "stored")
    named = json.loads((tmp_path / "stored" / "config.json").read_text())
    (tmp_path / "stored" / "config.json").write_text(json.dumps({**named, "dtype": None}))

    config = planning.load_model_config(str(tmp_path / "stored"))

    assert config.dtype == stored


@pytest.mark.parametrize(
    ("text", "gib"), [("48", 48.0), ("45GiB", 45.0), ("48 GB", 44.7), ("l40s", 45.0), ("H100", 79.6)]
)
def test_a_card_is_a_name_or_a_size(text: str, gib: float) -> None:
    assert read_gpu_memory(text) == pytest.approx(gib, abs=0.05)


@pytest.mark.parametrize("text", ["", "0", "much", "-3"])
def test_other_text_is_no_card(text: str) -> None:
    with pytest.raises(ConfigError, match="is neither a size, e.g. 45 or 45GiB, nor one of"):
        read_gpu_memory(text)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"nowhere' is neither a folder with a config\.json"):
        plan_training(make_config(tmp_path / "nowhere"), on_gpu=True)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')

    with pytest.raises(ConfigError, match="is not a causal language model"):
        plan_training(make_config(tmp_path), on_gpu=True)


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')

    with pytest.raises(ConfigError, match=r"its config\.json is of no known model"):
        plan_training(make_config(tmp_path), on_gpu=True)


def test_the_table_shows_every_part_the_card_and_the_time(model_folder: Path) -> None:
    plan = plan_training(make_config(model_folder), on_gpu=True, capacity_gib=45.0, with_time=True)

    text = printed(plan)

    sentences = ("Memory of one process", "Fits: needs", "values are trained", "The decomposition takes about")
    for expected in (*plan.parts_gib, "the card", *sentences):
        assert expected in text
    assert GATHERED not in text


def test_the_table_of_several_gpus_says_what_each_gathers_and_receives(model_folder: Path) -> None:
    plan = plan_training(make_config(model_folder), on_gpu=True, world_size=4, capacity_gib=45.0)

    text = printed(plan)

    sentences = ("Memory of each of 4 GPUs", "on each of 4 GPUs, within", "Each receives 0.0 GiB of weights and")
    for expected in (GATHERED, "in the host's memory", *sentences):
        assert expected in text
