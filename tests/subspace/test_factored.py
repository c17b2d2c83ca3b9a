"""The paper's factored form: what it starts from, where it may go, and that it follows the package it is to match."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from osft.subspace.attach import attach, merge, project_gradients
from osft.subspace.decomposition import ProtectedSubspace, protect_leading_directions
from osft.subspace.factored import FactoredWeight, decompose_free_part
from osft.subspace.targets import find_targets

# float32 holds a weight to 6e-8 of its size; over some hundred products 1e-5 leaves room without hiding a bug.
RELATIVE_TOLERANCE = 1e-5
SHAPES = [(24, 24), (12, 40), (40, 12), (1, 9), (9, 1)]


def make_weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def protect_each(weights: Tensor, ratio: float) -> ProtectedSubspace:
    each = [protect_leading_directions(weight, ratio) for weight in weights]
    return ProtectedSubspace(left=torch.stack([p.left for p in each]), right=torch.stack([p.right for p in each]))


def train_a_little(factored: FactoredWeight, steps: int = 5) -> None:
    """Take AdamW steps that are large against the weight, so that rounding does not hide in a small update."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(factored.parameters(), lr=0.05)
    for _ in range(steps):
        weight = factored(factored.merged)
        inputs = torch.randn(7, weight.shape[-1], generator=generator, dtype=weight.dtype)
        (inputs @ weight.mT).cos().float().mean().backward()
        factored.project_gradient()
        optimizer.step()
        optimizer.zero_grad()
        factored.merge()


def relative_protected_part(update: Tensor, protected: ProtectedSubspace) -> float:
    left = (protected.left.mT @ update).norm()
    right = (update @ protected.right).norm()
    return (torch.maximum(left, right) / update.norm()).item()


def replace_weight(module: nn.Module, factored: FactoredWeight) -> None:
    parametrize.register_parametrization(module, "weight", factored, unsafe=True)
    module.parametrizations.weight.original.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), ratio=st.floats(0, 1), weight_rank=st.integers(0, 24))
def test_before_the_first_step_the_weight_is_the_base_to_rounding(
    rows: int, columns: int, ratio: float, weight_rank: int
) -> None:
    weight = make_weight(rows, weight_rank) @ make_weight(weight_rank, columns, seed=1)

    factored = FactoredWeight(weight.clone(), protect_leading_directions(weight, ratio))

    assert torch.equal(factored.merged, weight)
    torch.testing.assert_close(factored(weight), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_training_leaves_the_protected_directions_alone(rows: int, columns: int, ratio: float) -> None:
    weight = make_weight(rows, columns)
    protected = protect_leading_directions(weight, ratio)
    factored = FactoredWeight(weight.clone(), protected)

    train_a_little(factored)

    update = factored.merged.double() - weight.double()
    assert update.norm() > 0.01
    assert relative_protected_part(update, protected) <= RELATIVE_TOLERANCE


def test_a_subspace_of_any_source_is_respected_with_as_many_factors_as_its_smaller_side_is_free() -> None:
    weight = make_weight(10, 14)
    left = torch.linalg.qr(make_weight(10, 2).double()).Q
    right = torch.linalg.qr(make_weight(14, 9).double()).Q
    protected = ProtectedSubspace(left=left, right=right)
    factored = FactoredWeight(weight.clone(), protected)

    train_a_little(factored)

    assert factored.s_low.shape == (5,)
    assert relative_protected_part(factored.merged.double() - weight.double(), protected) <= RELATIVE_TOLERANCE


def test_an_empty_side_is_free() -> None:
    weight = make_weight(6, 9)
    right = torch.linalg.qr(make_weight(9, 4).double()).Q
    protected = ProtectedSubspace(left=torch.zeros(6, 0, dtype=torch.float64), right=right)
    factored = FactoredWeight(weight.clone(), protected)

    train_a_little(factored)

    assert factored.s_low.shape == (5,)
    assert relative_protected_part(factored.merged.double() - weight.double(), protected) <= RELATIVE_TOLERANCE


def test_the_factors_are_the_trailing_part_of_the_weights_own_decomposition() -> None:
    weight = make_weight(8, 12).double()

    u_low, s_low, v_low = decompose_free_part(weight, protect_leading_directions(weight, 0.5))

    left, singular_values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(s_low, singular_values[4:])
    # A pair of vectors may have the other sign.
    torch.testing.assert_close((u_low.T @ left[:, 4:]).abs(), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close((v_low @ right[4:].T).abs(), torch.eye(4, dtype=torch.float64))


def test_the_factors_stay_free_where_the_weight_has_singular_values_of_zero() -> None:
    weight = make_weight(10, 3) @ make_weight(3, 10, seed=1)
    protected = protect_leading_directions(weight, 0.5)

    u_low, _, v_low = decompose_free_part(weight, protected)

    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(u_low.T @ u_low, identity)
    torch.testing.assert_close(v_low @ v_low.T, identity)
    torch.testing.assert_close(protected.left.T @ u_low, torch.zeros(5, 5, dtype=torch.float64))
    torch.testing.assert_close(v_low @ protected.right, torch.zeros(5, 5, dtype=torch.float64))


def test_gradients_lose_their_protected_part_and_keep_the_rest() -> None:
    weight = make_weight(8, 12).double()
    protected = protect_leading_directions(weight, 0.5)
    factored = FactoredWeight(weight.clone(), protected)
    factored(weight).sin().sum().backward()
    before = copy.deepcopy([factored.u_low.grad, factored.s_low.grad, factored.v_low.grad])

    factored.project_gradient()

    identity = torch.eye(12, dtype=torch.float64)
    left_free = identity[:8, :8] - protected.left @ protected.left.T
    right_free = identity - protected.right @ protected.right.T
    torch.testing.assert_close(factored.u_low.grad, left_free @ before[0])
    assert torch.equal(factored.s_low.grad, before[1])
    torch.testing.assert_close(factored.v_low.grad, before[2] @ right_free)


def test_at_ratio_zero_nothing_is_trained() -> None:
    weight = make_weight(6, 9)
    factored = FactoredWeight(weight.clone(), protect_leading_directions(weight, 0.0))

    train_a_little(factored)

    assert sum(parameter.numel() for parameter in factored.parameters()) == 0
    assert torch.equal(factored.merged, weight)
    assert torch.equal(factored(weight), weight)


def test_a_bfloat16_weight_has_float32_factors_and_keeps_the_invariants_to_the_rounding_of_what_is_stored() -> None:
    weight = make_weight(32, 48).bfloat16()
    protected = protect_leading_directions(weight, 0.25)
    factored = FactoredWeight(weight.clone(), protected)

    train_a_little(factored)

    update = factored.merged.double() - weight.double()
    # bfloat16 keeps 8 bits: each entry is off by at most 2^-9 of itself.
    rounding = 2**-9 * factored.merged.double().norm()
    assert factored.merged.dtype == factored(weight).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in factored.parameters()} == {torch.float32}
    assert (protected.left.T @ update).norm() <= rounding
    assert (update @ protected.right).norm() <= rounding


def test_a_stack_of_experts_is_each_matrix_on_its_own() -> None:
    stack = make_weight(3, 8, 12)
    together = FactoredWeight(stack.clone(), protect_each(stack, 0.25))
    alone = [FactoredWeight(weight.clone(), protect_leading_directions(weight, 0.25)) for weight in stack]

    for factored in (together, *alone):
        train_a_little(factored)

    # AdamW's eps meets gradients that are a third as large in the mean over three experts.
    torch.testing.assert_close(together.merged, torch.stack([factored.merged for factored in alone]), rtol=0, atol=1e-3)
    assert (together.merged - stack).abs().max() > 0.1


@pytest.mark.parametrize("make_layer", [lambda: nn.Linear(12, 8), lambda: Conv1D(8, 12)], ids=["linear", "conv1d"])
def test_any_layer_computes_with_the_merged_weight(make_layer: Callable[[], nn.Module]) -> None:
    layer = make_layer()
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    expected = layer(inputs)
    weight = layer.weight.detach()
    factored = FactoredWeight(weight.clone(), protect_leading_directions(weight, 0.5))
    replace_weight(layer, factored)

    torch.testing.assert_close(layer(inputs), expected)
    train_a_little(factored)

    plain = make_layer()
    plain.load_state_dict({"weight": factored.merged, "bias": layer.bias})
    torch.testing.assert_close(layer(inputs), plain(inputs))
    assert not torch.allclose(layer(inputs), expected, atol=1e-3)


STORED_TRAJECTORY = Path(__file__).with_name("mini_trainer_trajectory.json")
"""Configuration, and losses of :func:`train_with_the_package` in the environment that the file names."""

# What issue 3 asks for. Measured: 1e-6; clipping after the projection instead of before it: 2e-3.
LOSS_TOLERANCE = 1e-4


@pytest.fixture
def stored() -> dict[str, Any]:
    return json.loads(STORED_TRAJECTORY.read_text())


def make_llama(config: dict[str, Any]) -> LlamaForCausalLM:
    """Return a Llama whose matrices come from one generator, whatever transformers initialises them to."""
    model = LlamaForCausalLM(LlamaConfig(**config["model"]))
    generator = torch.Generator().manual_seed(config["model_seed"])
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 2:
            parameter.data = torch.randn(parameter.shape, generator=generator) * config["weight_std"]
    return model


def make_batches(config: dict[str, Any]) -> Tensor:
    """Return token ids ``[batches, samples, tokens]``."""
    generator = torch.Generator().manual_seed(config["data_seed"])
    return torch.randint(0, config["model"]["vocab_size"], config["data_shape"], generator=generator)


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, **config["adamw"])


def take_steps(model: nn.Module, config: dict[str, Any], step: Callable[[], object]) -> list[float]:
    """Return the losses before each step; ``step`` follows the clipping, as in the package's training loop."""
    batches = make_batches(config)
    losses = []
    for number in range(config["steps"]):
        batch = batches[number % len(batches)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config["max_gradient_norm"])
        step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


def train_with_factored_weights(config: dict[str, Any]) -> list[float]:
    model = make_llama(config)
    attach(
        model,
        find_targets(model),
        lambda _, weight: protect_leading_directions(weight, config["unfreeze_rank_ratio"]),
        factored=True,
        train_other_parameters=True,
    )
    optimizer = make_optimizer(model, config)

    def step() -> None:
        project_gradients(model)
        optimizer.step()
        merge(model)

    return take_steps(model, config, step)


def train_with_the_package(config: dict[str, Any], folder: Path) -> list[float]:
    """Return the losses of rhai-innovation-mini-trainer: its model class, projections and optimizer wrapper."""
    from mini_trainer.osft_utils import create_osft_model_class, optim_wrapper

    make_llama(config).save_pretrained(folder)
    model = create_osft_model_class(LlamaForCausalLM).from_pretrained(
        folder,
        # The package counts what is frozen.
        rank_ratio=1 - config["unfreeze_rank_ratio"],
        target_patterns=config["target_patterns"],
        initialize_osft=True,
        upcast_dtype=torch.float32,
        output_dtype=torch.float32,
    )
    return take_steps(model, config, optim_wrapper(make_optimizer(model, config), model).step)


def test_twenty_steps_have_the_losses_that_mini_trainer_had(stored: dict[str, Any]) -> None:
    losses = train_with_factored_weights(stored["config"])

    assert len(losses) == 20
    assert losses == pytest.approx(stored["losses"], abs=LOSS_TOLERANCE)


def test_twenty_steps_have_the_losses_that_mini_trainer_has(stored: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("mini_trainer", reason="rhai-innovation-mini-trainer is not installed")

    theirs = train_with_the_package(stored["config"], tmp_path)

    assert theirs == pytest.approx(stored["losses"], abs=LOSS_TOLERANCE)
    assert train_with_factored_weights(stored["config"]) == pytest.approx(theirs, abs=LOSS_TOLERANCE)
