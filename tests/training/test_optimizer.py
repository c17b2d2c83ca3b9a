"""AdamW over what is trained."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from osft.config import TrainingConfig
from osft.training.optimizer import AdamWithBfloat16Moments, MasterParameters, make_optimizer

HYPERPARAMETERS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def make_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(
        model_path="m", data_path="d", unfreeze_rank_ratio=0.5, effective_batch_size=1, max_tokens_per_gpu=1,
        max_seq_len=1, learning_rate=0.01, ckpt_output_dir="o", **changes,
    )  # fmt: skip


def descend(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int = 60) -> list[Tensor]:
    """Follow the gradient of a noisy quadratic and return where each step led."""
    generator = torch.Generator().manual_seed(0)
    path = []
    for _ in range(steps):
        parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def test_bfloat16_moments_follow_adamw_to_the_precision_of_the_moments() -> None:
    start = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    exact, short = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    expected = descend(torch.optim.AdamW([exact], **HYPERPARAMETERS), exact)
    actual = descend(AdamWithBfloat16Moments([short], **HYPERPARAMETERS), short)

    way = (expected[-1] - start).norm()
    # A moment is off by at most 2^-8 of itself after the few steps that it remembers.
    assert (actual[-1] - expected[-1]).norm() <= 0.01 * way


def test_the_moments_take_four_bytes_a_value() -> None:
    parameter = nn.Parameter(torch.ones(8, 8))
    optimizer = AdamWithBfloat16Moments([parameter], **HYPERPARAMETERS)

    descend(optimizer, parameter, steps=1)

    state = optimizer.state[parameter]
    assert sum(moment.nbytes for moment in state.values() if isinstance(moment, Tensor)) == 4 * parameter.numel()


@pytest.mark.parametrize(("save_memory", "kind"), [(False, torch.optim.AdamW), (True, AdamWithBfloat16Moments)])
def test_save_memory_chooses_the_moments(save_memory: bool, kind: type) -> None:
    optimizer = make_optimizer([nn.Parameter(torch.ones(2))], make_config(save_memory=save_memory, beta2=0.9))

    assert type(optimizer) is kind
    assert optimizer.defaults["betas"] == (0.9, 0.9)


def test_a_bfloat16_parameter_moves_through_a_float32_copy_that_collects_small_steps() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = MasterParameters([parameter])
    optimizer = torch.optim.SGD(masters.parameters, lr=1e-4)

    for _ in range(100):
        # Two backward passes a step, as with two micro-batches.
        (parameter.sum() / 2).backward()
        (parameter.sum() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        masters.write_back()

    # 1e-4 is far below what bfloat16 resolves at 1, which is 2^-8.
    assert parameter.grad is None
    torch.testing.assert_close(masters.parameters[0], torch.full((4,), 0.99))
    torch.testing.assert_close(parameter, torch.full((4,), 0.99, dtype=torch.bfloat16))


def test_a_float32_parameter_is_its_own_master() -> None:
    parameter = nn.Parameter(torch.ones(4))

    masters = MasterParameters([parameter])

    assert masters.parameters[0] is parameter
