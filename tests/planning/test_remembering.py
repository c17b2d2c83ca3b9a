"""What a plan says of the subspace memory that a run leaves: its measurement and its size."""

from dataclasses import replace
from pathlib import Path

import pytest

from osft.config import TrainingConfig
from osft.planning.memory_plan import BYTES_PER_GIB, RESERVED_GIB
from osft.planning.plan import config_to_plan, plan_training
from osft.planning.simulation import COVARIANCES, GRADIENTS, MOMENTS, REMEMBERING
from osft.subspace.memory.measuring import ROUND_BYTES
from tests.planning.conftest import make_model_config, printed

INPUTS, BEHIND_GATES = 1024, 3072


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    shape = {"hidden_size": INPUTS, "intermediate_size": BEHIND_GATES, "num_hidden_layers": 2}
    make_model_config(**shape).save_pretrained(tmp_path)
    return tmp_path / "config.json"


def make_config(model_file: Path, **options: object) -> TrainingConfig:
    values = {"unfreeze_rank_ratio": 0.05, "max_tokens_per_gpu": 16, "remember": True, **options}
    return config_to_plan(str(model_file), **values)


def test_a_gpu_is_counted_with_one_covariance_at_a_time_and_its_decomposition(model_file: Path) -> None:
    without = plan_training(make_config(model_file, remember=False), on_gpu=True)
    plan = plan_training(make_config(model_file), on_gpu=True)

    assert plan.peak_phase == REMEMBERING
    assert plan.parts_gib[COVARIANCES] * BYTES_PER_GIB == 4 * BEHIND_GATES**2
    assert plan.parts_gib.keys().isdisjoint({MOMENTS, GRADIENTS})
    assert {phase: size for phase, size in plan.peaks_gib.items() if phase != REMEMBERING} == without.peaks_gib
    # Of every block: one of queries, keys and values, one behind the attention, one of gate and up, and that of down.
    inputs = 2 * [INPUTS, INPUTS, INPUTS, BEHIND_GATES]
    # All directions in bfloat16 and an eigenvalue of each.
    assert plan.memory_gib * BYTES_PER_GIB == sum(2 * size**2 + 4 * size for size in inputs)
    assert plan.host_gib == without.host_gib + 2 * plan.memory_gib


def test_a_card_with_more_room_measures_the_memory_in_fewer_passes_and_needs_no_more(model_file: Path) -> None:
    config = make_config(model_file)
    needed = plan_training(config, on_gpu=True).total_gib

    plans = [plan_training(config, on_gpu=True, capacity_gib=gib + RESERVED_GIB) for gib in (needed, needed + 1)]

    # In each block the three small ones come together before the large one.
    assert [plan.memory_passes for plan in plans] == [4, 1]
    assert [plan.total_gib for plan in plans] == [needed, needed]
    assert all(plan.fits for plan in plans)


def test_of_several_processes_each_remembers_its_share_of_the_groups(model_file: Path) -> None:
    alone = plan_training(make_config(model_file), on_gpu=False)
    spread = plan_training(make_config(model_file), on_gpu=False, world_size=2)

    assert spread.parts_gib[COVARIANCES] == alone.parts_gib[COVARIANCES] / 2
    assert spread.memory_gib == alone.memory_gib


def test_a_cpu_holds_no_more_covariances_than_a_round_and_a_memory_has_its_limit(tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 28672, "num_hidden_layers": 3}
    make_model_config(**shape).save_pretrained(tmp_path)

    plan = plan_training(make_config(tmp_path), on_gpu=False)

    assert 0.8 * ROUND_BYTES < plan.parts_gib[COVARIANCES] * BYTES_PER_GIB <= ROUND_BYTES
    assert plan.memory_gib * BYTES_PER_GIB == 2e9


def test_the_table_shows_the_covariances_and_the_size_of_a_memory(model_file: Path) -> None:
    config = make_config(model_file)

    remembering, forgetting = (
        printed(plan_training(replace(config, remember=remember), on_gpu=True, capacity_gib=45.0))
        for remember in (True, False)
    )

    sentence = "The memory that it leaves takes at most 0.05 GiB on disk and is measured in 1 pass over the data."
    for expected in (f"at its peak: {REMEMBERING}", COVARIANCES, sentence):
        assert expected in remembering
        assert expected not in forgetting
