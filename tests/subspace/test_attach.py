"""A model in, a model out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from osft.subspace.attach import attach, merge, plain_state, project_gradients, trained_weights
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions
from osft.subspace.parametrization import SubspaceWeight
from osft.subspace.targets import find_targets, target_parameter

INPUT_IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2}


def make_qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True, attention_bias=True))


def make_qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, num_experts=4, moe_intermediate_size=8))


def make_gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(GptOssConfig(**SIZES, **HEADS, **EXPERTS, num_local_experts=4))


def make_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))


FAMILIES = [make_qwen3, make_qwen3_moe, make_gpt_oss, make_gpt2]


def make_model(family: Callable[[], PreTrainedModel], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    # Without dropout, which GPT-2 has.
    return family().to(dtype).eval()


def protect_leading(ratio: float) -> Callable[[str, Tensor], ProtectedSubspace]:
    return lambda name, weight: protect_leading_directions(weight, ratio)


def train_a_little(model: PreTrainedModel, steps: int = 3) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    for _ in range(steps):
        model(INPUT_IDS, labels=INPUT_IDS).loss.backward()
        project_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        merge(model)


def protected_part(update: Tensor, weight: Tensor, ratio: float) -> tuple[float, float]:
    """Return the norms of what ``update`` holds of the leading directions of ``weight``, left and right."""
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    rank = frozen_rank(*weight.shape[-2:], ratio)
    return (left[..., :rank].mT @ update).norm().item(), (update @ right[..., :rank, :].mT).norm().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_attaching_does_not_change_the_logits_by_a_bit(family: Callable[[], PreTrainedModel]) -> None:
    model = make_model(family)
    expected = model(INPUT_IDS).logits

    attach(model, find_targets(model), protect_leading(0.25))

    assert torch.equal(model(INPUT_IDS).logits, expected)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_moves_every_target_outside_its_leading_directions_and_nothing_else(
    family: Callable[[], PreTrainedModel], ratio: float
) -> None:
    model = make_model(family)
    targets = find_targets(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bases = {target.name: target_parameter(model, target).detach().double() for target in targets}

    attach(model, targets, protect_leading(ratio))
    train_a_little(model)

    trained = dict(trained_weights(model))
    assert set(trained) == {target.name for target in targets}
    for name, weight in trained.items():
        update = weight.merged - bases[name]
        assert (update.norm() > 0) == (ratio > 0)
        # float32 holds a weight to 6e-8 of its size, and the update is about as large as the weight.
        assert max(protected_part(update, bases[name], ratio)) <= 1e-5 * update.norm()
    moved = {name for name, tensor in plain_state(model).items() if not torch.equal(tensor, state[name])}
    assert moved <= {f"{target.module_name}.{target.parameter_name}" for target in targets}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_state_is_that_of_a_model_without_our_layers(family: Callable[[], PreTrainedModel]) -> None:
    model = make_model(family)
    names = list(model.state_dict())
    attach(model, find_targets(model), protect_leading(0.25))
    train_a_little(model)
    expected = model(INPUT_IDS).logits

    state = plain_state(model)

    plain = make_model(family)
    plain.load_state_dict(state)
    assert sorted(state) == sorted(names)
    torch.testing.assert_close(plain(INPUT_IDS).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_cores_are_trained(family: Callable[[], PreTrainedModel]) -> None:
    model = make_model(family)

    attach(model, find_targets(model), protect_leading(0.25))

    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained == {id(weight.core) for _, weight in trained_weights(model) if isinstance(weight, SubspaceWeight)}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_parameters_are_trained_when_asked_for(family: Callable[[], PreTrainedModel]) -> None:
    model = make_model(family)
    targets = find_targets(model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name for name, _ in model.named_buffers()}

    attach(model, targets, protect_leading(0.25), train_other_parameters=True)
    train_a_little(model)

    unmoved = {name for name, tensor in plain_state(model).items() if torch.equal(tensor, base[name])} - kept
    # The key's bias shifts every score of a query alike, so attention, and the loss, do not depend on it.
    assert {name for name in unmoved if not name.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_on_the_host_is_computed_with_all_the_same(family: Callable[[], PreTrainedModel]) -> None:
    states = []
    for offload in (False, True):
        model = make_model(family)
        attach(model, find_targets(model), protect_leading(0.25), offload=offload)
        train_a_little(model)
        states.append(plain_state(model))

    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


def test_a_parametrization_of_the_models_own_stays_in_its_state() -> None:
    model = make_model(make_qwen3)
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.down_proj)
    names = {name for name in model.state_dict() if "parametrizations" in name}
    attach(model, find_targets(model, ["q_proj"]), protect_leading(0.25))

    state = plain_state(model)

    assert names <= state.keys()
    assert len(names) == 2


def test_a_linear_keeps_its_gradient_when_the_bias_is_trained() -> None:
    model = make_model(make_qwen3, torch.float64)
    reference = make_model(make_qwen3, torch.float64)
    attach(model, find_targets(model), protect_leading(0.25), train_other_parameters=True)

    for each in (model, reference):
        each(INPUT_IDS, labels=INPUT_IDS).loss.backward()

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if "core" not in name}
    for name, parameter in reference.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad)
