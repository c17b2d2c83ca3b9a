"""The benchmark's variants train the same thing."""

import pytest
import torch

from benchmarks.timing import DecompositionRun, TrainingRun
from benchmarks.workload import SMOKE_SHAPE, Workload

# The others need a peer's package.
OWN_VARIANTS = ("frozen", "sft", "osft", "osft-save-memory")
WORKLOAD = Workload(shape=SMOKE_SHAPE, device="cpu", threads=1, rows=2, tokens_per_row=16, unfreeze_rank_ratio=0.25)


def test_every_variant_starts_with_the_same_loss() -> None:
    losses = [TrainingRun(WORKLOAD, name).take_step(2).loss for name in OWN_VARIANTS]

    # Before its first step each is the same model, bit for bit.
    assert losses == [losses[0]] * len(OWN_VARIANTS)


@pytest.mark.parametrize("name", ["sft", "osft", "osft-save-memory"])
def test_a_variant_that_trains_moves_its_model(name: str) -> None:
    run = TrainingRun(WORKLOAD, name)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}

    run.take_step(1)

    assert any(not torch.equal(value, before[key]) for key, value in run.model.state_dict().items())


def test_the_frozen_variant_moves_nothing_and_has_no_gradient_of_a_weight() -> None:
    run = TrainingRun(WORKLOAD, "frozen")
    before = {key: value.clone() for key, value in run.model.state_dict().items()}

    run.take_step(1)

    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_filled_cache_leaves_nothing_to_decompose() -> None:
    computed = DecompositionRun(WORKLOAD, "osft").decompose(1).computed
    cached = DecompositionRun(WORKLOAD, "osft-cached").decompose(1).computed

    assert (computed, cached) == (7, 0)
