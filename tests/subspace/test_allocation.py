"""Adaptive ranks: the paper's formula, its bounds, and where the similarities come from."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from osft.errors import ConfigError
from osft.subspace.allocation import adaptive_ratios, ratios_from_similarities
from osft.subspace.targets import Target, find_targets

BATCHES = [torch.tensor([[5, 6, 7, 8, 9], [9, 3, 4, 200, 7]]), torch.tensor([[100, 101, 102]])]
SIMILARITIES = st.dictionaries(st.integers(0, 40).map("layers.{}".format), st.floats(-1, 1), min_size=1, max_size=32)


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def test_at_the_papers_ratio_the_minimum_and_the_target_retention_are_the_papers() -> None:
    ratios = ratios_from_similarities({"unlike": 0.0, "middle": 0.5, "alike": 1.0}, 0.2)

    # r(l) = 0.1 + I(l) (0.8 - 0.1), and I is 0, 1 and 2; the last r is clipped to 1.
    assert ratios == pytest.approx({"unlike": 0.9, "middle": 0.2, "alike": 0.0})


@given(similarities=SIMILARITIES, ratio=st.floats(0, 1))
def test_ratios_stay_between_nothing_and_everything_and_a_layer_more_alike_never_frees_more(
    similarities: dict[str, float], ratio: float
) -> None:
    ratios = ratios_from_similarities(similarities, ratio)

    assert all(0 <= value <= 1 for value in ratios.values())
    in_order = [ratios[layer] for layer in sorted(similarities, key=similarities.__getitem__)]
    assert in_order == sorted(in_order, reverse=True)


# No layer is twice as important as the mean then, so nothing is clipped.
@given(similarities=st.dictionaries(st.text(), st.floats(0.5, 0.99), min_size=1, max_size=32), ratio=st.floats(0.5, 1))
def test_the_mean_over_the_layers_is_the_ratio_that_was_asked_for(similarities: dict[str, float], ratio: float) -> None:
    ratios = ratios_from_similarities(similarities, ratio)

    assert sum(ratios.values()) / len(ratios) == pytest.approx(ratio)


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_at_the_ends_every_layer_is_treated_alike(ratio: float, expected: float) -> None:
    ratios = ratios_from_similarities({"unlike": 0.1, "alike": 0.9}, ratio)

    assert ratios == {"unlike": expected, "alike": expected}


def test_without_any_similarity_the_ratio_is_the_same_for_all() -> None:
    ratios = ratios_from_similarities({"one": -0.5, "two": 0.0}, 0.25)

    assert ratios == pytest.approx({"one": 0.25, "two": 0.25})


def test_every_target_of_a_block_takes_the_ratio_of_its_hidden_states_similarity(model: PreTrainedModel) -> None:
    targets = find_targets(model)
    cosines: dict[str, list[Tensor]] = {"model.layers.0": [], "model.layers.1": []}
    caught: list[Tensor] = []
    # The model's own list of hidden states has the last one behind the final norm.
    model.model.norm.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0].detach()))
    for batch in BATCHES:
        with torch.no_grad():
            states = model.eval()(batch, output_hidden_states=True).hidden_states
        for layer, (before, after) in enumerate([(states[0], states[1]), (states[1], caught[-1])]):
            cosines[f"model.layers.{layer}"].append(torch.cosine_similarity(before, after, dim=-1).flatten())
    expected = ratios_from_similarities({name: float(torch.cat(each).mean()) for name, each in cosines.items()}, 0.25)

    ratios = adaptive_ratios(model, targets, BATCHES, 0.25)

    assert list(ratios) == [target.name for target in targets]
    for name, ratio in ratios.items():
        # Sums in another order.
        assert ratio == pytest.approx(expected[name[: len("model.layers.0")]], abs=1e-5)
    assert len(set(ratios.values())) == 2


def test_measuring_leaves_the_model_as_it_is(model: PreTrainedModel) -> None:
    model.train()

    adaptive_ratios(model, find_targets(model), BATCHES, 0.25)

    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_experts_take_the_ratio_of_the_whole_block() -> None:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)

    ratios = adaptive_ratios(model, find_targets(model), BATCHES, 0.25)

    assert ratios["model.layers.1.mlp.experts.down_proj"] == ratios["model.layers.1.self_attn.q_proj"]


class Funnel(PreTrainedModel):
    """A stack of linears, each with another size, and one outside of it."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.embed = nn.Embedding(256, 8)
        self.outside = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 4)])

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        return self.layers[0](self.outside(self.embed(input_ids)))


def make_target(name: str) -> Target:
    return Target(module_name=name, parameter_name="weight", inputs_are_columns=True)


def test_a_target_outside_the_blocks_takes_the_ratio_that_was_asked_for() -> None:
    ratios = adaptive_ratios(Funnel(), [make_target("outside")], BATCHES, 0.25)

    assert ratios == {"outside": 0.25}


def test_a_block_that_changes_the_size_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"rank_allocation='adaptive'.*layers\.0 maps \(2, 5, 8\) to \(2, 5, 4\)"):
        adaptive_ratios(Funnel(), [make_target("layers.0")], BATCHES, 0.25)
