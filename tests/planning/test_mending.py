"""What a plan says where a run does not fit: the change that costs least first."""

from dataclasses import replace
from pathlib import Path

import pytest

from osft.config import TrainingConfig
from osft.planning.memory_plan import RESERVED_GIB, MemoryPlan
from osft.planning.plan import config_to_plan, plan_training
from osft.planning.simulation import REMEMBERING
from tests.planning.conftest import make_model_config

# Of one block, so wide that its numbers have digits: so few values that measuring the memory takes most.
REMEMBERS = {"unfreeze_rank_ratio": 0.05, "max_tokens_per_gpu": 1024, "remember": True}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    make_model_config(hidden_size=2048, intermediate_size=8192, num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path / "config.json"


def make_config(model_file: Path, **options: object) -> TrainingConfig:
    return config_to_plan(str(model_file), **{"unfreeze_rank_ratio": 0.25, "max_tokens_per_gpu": 1024, **options})


def needs_gib(config: TrainingConfig, world_size: int = 1) -> float:
    return plan_training(config, on_gpu=True, world_size=world_size).total_gib


def planned_within(config: TrainingConfig, gib: float, world_size: int = 1) -> MemoryPlan:
    """Return the plan for a card that holds a run of so much."""
    return plan_training(config, on_gpu=True, world_size=world_size, capacity_gib=1.001 * gib + RESERVED_GIB)


def test_saving_memory_is_the_first_change_where_it_is_enough(model_file: Path) -> None:
    config = make_config(model_file, remember=True)
    saving_gib = needs_gib(replace(config, save_memory=True))

    plan = planned_within(config, saving_gib)

    assert plan.fits is False
    assert f". With save_memory=True it needs {saving_gib:.1f} GiB." in plan.verdict


def test_fewer_tokens_are_the_mend_where_saving_is_not_enough(model_file: Path) -> None:
    config = make_config(model_file, save_memory=True, max_tokens_per_gpu=4096)
    fewer_gib = needs_gib(replace(config, max_tokens_per_gpu=2048, max_seq_len=2048))

    plan = planned_within(config, fewer_gib)

    assert plan.mend.startswith(f"With max_tokens_per_gpu=2048, max_seq_len=2048 it needs {fewer_gib:.1f} GiB.")


def test_a_mend_never_cuts_below_a_block_of_documents(model_file: Path) -> None:
    config = make_config(model_file, is_pretraining=True, block_size=1024, save_memory=True)

    plan = plan_training(config, on_gpu=True, capacity_gib=RESERVED_GIB)

    assert "take a larger card or a smaller model" in plan.verdict


def test_more_gpus_are_a_mend_where_they_help(model_file: Path) -> None:
    config = make_config(model_file, save_memory=True)
    on_four_gib = needs_gib(config, world_size=4)

    plan = planned_within(config, on_four_gib, world_size=2)

    assert f"On 4 GPUs it needs {on_four_gib:.1f} GiB on each." in plan.verdict


def test_a_run_that_fits_but_for_its_memory_is_told_to_leave_none_and_keeps_its_tokens(model_file: Path) -> None:
    config = make_config(model_file, **REMEMBERS, save_memory=True)
    training_gib = needs_gib(replace(config, remember=False))

    plan = planned_within(config, training_gib)

    assert plan.peak_phase == REMEMBERING
    assert plan.mend == f"With remember=False it needs {training_gib:.1f} GiB."


def test_saving_memory_and_leaving_none_are_tried_together_before_fewer_tokens(model_file: Path) -> None:
    config = make_config(model_file, **REMEMBERS)
    training_gib = needs_gib(replace(config, save_memory=True, remember=False))

    plan = planned_within(config, training_gib)

    assert plan.mend == f"With save_memory=True, remember=False it needs {training_gib:.1f} GiB."


@pytest.mark.parametrize(("remember", "besides"), [(False, ""), (True, "nor remember=False, ")])
def test_a_plan_that_nothing_mends_says_so(model_file: Path, remember: bool, besides: str) -> None:
    plan = plan_training(make_config(model_file, remember=remember), on_gpu=True, capacity_gib=RESERVED_GIB)

    assert plan.mend == (
        f"Neither save_memory=True, {besides}nor fewer tokens, nor a smaller ratio, nor 8 times as many GPUs is "
        "enough: take a larger card or a smaller model."
    )
