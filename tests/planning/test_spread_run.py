"""The plan of one process of several: its share, what it gathers, what travels."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from osft.config import TrainingConfig
from osft.planning.memory_plan import BYTES_PER_GIB, MemoryPlan
from osft.planning.plan import config_to_plan, load_model_config, plan_training
from osft.planning.simulation import BASES, GATHERED, GRADIENTS, MERGED, MOMENTS, TRAINED, WEIGHTS
from osft.subspace.attach import attach, trained_weights
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.parametrization import SubspaceWeight
from osft.subspace.targets import find_targets

RATIO = 0.25


def make_config(model_folder: Path, **options: object) -> TrainingConfig:
    return config_to_plan(str(model_folder), **{"unfreeze_rank_ratio": RATIO, "max_tokens_per_gpu": 1024, **options})


def planned(model_folder: Path, world_size: int, *, on_gpu: bool = True, **options: object) -> MemoryPlan:
    return plan_training(make_config(model_folder, **options), on_gpu=on_gpu, world_size=world_size)


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_process_keeps_its_share_of_everything_that_lasts(model_folder: Path, world_size: int) -> None:
    alone, spread = planned(model_folder, 1), planned(model_folder, world_size)

    assert spread.trained_values == alone.trained_values
    for part in (WEIGHTS, MERGED, BASES, TRAINED, GRADIENTS, MOMENTS):
        # Buffers, such as rotary frequencies, are whole in every process.
        assert spread.parts_gib[part] == pytest.approx(alone.parts_gib[part] / world_size, rel=2e-3)


def test_any_number_of_processes_divides_any_shape(model_folder: Path) -> None:
    alone, spread = planned(model_folder, 1), planned(model_folder, 7)

    # 256 rows are 37 for each of the first processes, not 36.6.
    assert alone.parts_gib[MERGED] / 7 < spread.parts_gib[MERGED] < 1.05 * alone.parts_gib[MERGED] / 7


def test_what_lies_outside_the_blocks_stays_whole_beside_a_block_and_the_buffer_of_the_next(model_folder: Path) -> None:
    blocks, rest = gathered_bytes(model_folder)

    # So few tokens that the blocks decide, not the logits.
    gathered = planned(model_folder, 4, max_tokens_per_gpu=16).parts_gib[GATHERED] * BYTES_PER_GIB

    block = blocks / 4
    # The buffers of the forward pass, of what is fetched ahead, and of the gradients, come on top.
    assert rest + 2 * block < gathered < rest + 5 * block


def test_what_each_process_receives_are_all_parts_but_its_own(model_folder: Path) -> None:
    blocks, rest = gathered_bytes(model_folder)

    plan = planned(model_folder, 4)

    assert plan.traffic is not None
    assert plan.traffic.gathered_bytes == pytest.approx(3 / 4 * (2 * blocks + rest))
    assert plan.traffic.reduced_bytes == pytest.approx(3 / 4 * 4 * plan.trained_values)
    assert 0 < plan.traffic.bytes_per_step < plan.traffic.gathered_bytes


def test_saving_memory_halves_the_moments_of_a_share_and_moves_nothing(model_folder: Path) -> None:
    plan, saving = planned(model_folder, 2), planned(model_folder, 2, save_memory=True)

    assert saving.parts_gib[MOMENTS] == pytest.approx(plan.parts_gib[MOMENTS] / 2, rel=1e-3)
    assert saving.parts_gib[WEIGHTS] == plan.parts_gib[WEIGHTS]
    assert saving.host_gib == plan.host_gib


def test_decompositions_wait_in_the_hosts_memory_and_on_a_cpu_that_is_the_same(model_folder: Path) -> None:
    on_gpu, on_cpu = planned(model_folder, 2), planned(model_folder, 2, on_gpu=False)

    # What is used of them, in the dtype in which it is used.
    assert on_gpu.host_gib == pytest.approx(on_gpu.parts_gib[BASES], rel=1e-3)
    assert on_cpu.host_gib == 0
    assert on_cpu.peaks_gib["decomposition"] > on_gpu.peaks_gib["decomposition"] + on_gpu.host_gib / 2


def test_training_everything_is_planned_in_several_processes(model_folder: Path) -> None:
    plan, everything = planned(model_folder, 2), planned(model_folder, 2, train_other_parameters=True)

    others = everything.trained_values - plan.trained_values
    assert others >= 2 * 2000 * 256
    # The share of values, gradients and moments in float32.
    assert everything.total_gib > plan.total_gib + 16 * others / 2 / BYTES_PER_GIB


def test_experts_that_processes_cannot_share_evenly_are_planned(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=100, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)

    alone, spread = planned(tmp_path, 1), planned(tmp_path, 3)

    assert spread.trained_values == alone.trained_values
    assert alone.parts_gib[TRAINED] / 3 < spread.parts_gib[TRAINED] < alone.parts_gib[TRAINED] / 1.9


def gathered_bytes(model_folder: Path) -> tuple[int, int]:
    """Return what FSDP gathers of all blocks, and of the rest, counted on the engine's own tensors."""
    model = AutoModelForCausalLM.from_config(load_model_config(str(model_folder)), dtype=torch.bfloat16)
    attach(model, find_targets(model), lambda _, weight: protect_leading_directions(weight, RATIO))
    free_bases = [
        side.basis.nbytes
        for _, weight in trained_weights(model)
        if isinstance(weight, SubspaceWeight)
        for side in (weight.left, weight.right)
        if side.is_free_basis
    ]
    merged = sum(weight.merged.nbytes for _, weight in trained_weights(model) if isinstance(weight, SubspaceWeight))
    # Cores are gathered in bfloat16 as well.
    parameters = {name: 2 * parameter.numel() for name, parameter in model.named_parameters()}
    rest = sum(size for name, size in parameters.items() if ".layers." not in name)
    return merged + sum(free_bases) + sum(parameters.values()) - rest, rest
