"""What a run protects, from its configuration."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from osft.config import TrainingConfig
from osft.data.samples import Sample
from osft.errors import MissingPathError
from osft.subspace.allocation import adaptive_ratios
from osft.subspace.attach import attach, merge, project_gradients
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, protect_leading_directions
from osft.subspace.inputs import equal_length_batches, input_covariances, load_input_samples, protect_input_directions
from osft.subspace.sources import ADAPTIVE_SAMPLES, choose_source
from osft.subspace.targets import Target, find_targets, target_parameter


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def config(tiny_model: Path, messages_file: Path, tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(
        model_path=str(tiny_model), data_path=str(messages_file), unfreeze_rank_ratio=0.25, effective_batch_size=4,
        max_tokens_per_gpu=128, max_seq_len=64, learning_rate=1e-3, ckpt_output_dir=str(tmp_path / "out"),
    )  # fmt: skip


@contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def make_samples(count: int) -> list[Sample]:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 259, 4 + row % 3, dtype=np.int32) for row in range(count)]
    return [Sample(input_ids=ids, labels=ids, row=row) for row, ids in enumerate(texts, start=1)]


def ask_all(
    model: PreTrainedModel, config: TrainingConfig, cache_folder: Path | None = None
) -> dict[str, ProtectedSubspace]:
    targets = find_targets(model)
    source = choose_source(model, targets, config, make_samples(8), cache_folder)
    return {target.name: source(target.name, target_parameter(model, target).detach()) for target in targets}


def are_equal(one: dict[str, ProtectedSubspace], other: dict[str, ProtectedSubspace]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].left, other[name].left) and torch.equal(one[name].right, other[name].right)
        for name in one
    )


def test_by_default_the_leading_singular_directions_are_protected(
    model: PreTrainedModel, config: TrainingConfig
) -> None:
    protected = ask_all(model, config)

    for target in find_targets(model):
        expected = protect_leading_directions(target_parameter(model, target), 0.25)
        assert torch.equal(protected[target.name].left, expected.left.float())
        assert torch.equal(protected[target.name].right, expected.right.float())


@pytest.mark.parametrize("join_weights", [False, True])
def test_with_a_text_the_directions_of_its_inputs_are_protected(
    model: PreTrainedModel, config: TrainingConfig, messages_file: Path, join_weights: bool
) -> None:
    config = replace(config, protect_inputs_of=str(messages_file), protect_weights=join_weights)
    targets = find_targets(model)
    samples = load_input_samples(messages_file, config.model_path, 64, 259)
    covariances = input_covariances(model, targets, equal_length_batches(samples, 128))

    protected = ask_all(model, config)

    for target in targets:
        expected = protect_input_directions(
            target_parameter(model, target), covariances[target.name], 0.25,
            inputs_are_columns=True, join_weights=join_weights,
        )  # fmt: skip
        assert torch.equal(protected[target.name].right, expected.right)
        assert protected[target.name].left.shape[1] == 0


@pytest.mark.parametrize("inputs", [None, "alone", "joined"])
@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_at_the_ends_all_or_nothing_moves(
    model: PreTrainedModel,
    config: TrainingConfig,
    messages_file: Path,
    ratio: float,
    allocation: str,
    inputs: str | None,
) -> None:
    config = replace(
        config, unfreeze_rank_ratio=ratio, rank_allocation=allocation, protect_weights=inputs != "alone",
        protect_inputs_of=str(messages_file) if inputs else None,
    )  # fmt: skip
    targets = find_targets(model)
    before = {target.name: target_parameter(model, target).detach().clone() for target in targets}
    attach(model, targets, choose_source(model, targets, config, make_samples(8), None))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.arange(3, 40)[None]

    for _ in range(2):
        if ratio > 0:
            model(ids, labels=ids).loss.backward()
        project_gradients(model)
        optimizer.step()
        merge(model)

    for name, start in before.items():
        assert torch.equal(model.get_submodule(name).weight, start) == (ratio == 0.0)


@pytest.mark.parametrize("name", ["protect_inputs_of", "rank_allocation", None])
def test_the_same_run_protects_the_same_to_the_last_bit(
    model: PreTrainedModel, config: TrainingConfig, messages_file: Path, name: str | None
) -> None:
    if name:
        config = replace(config, **{name: str(messages_file) if name == "protect_inputs_of" else "adaptive"})

    once, again = ask_all(model, config), ask_all(model, config)

    assert are_equal(once, again)


def test_a_second_run_reads_what_the_first_one_computed(
    model: PreTrainedModel, config: TrainingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = ask_all(model, config, tmp_path / "subspaces")

    second = ask_all(model, config, tmp_path / "subspaces")

    assert are_equal(first, second)
    assert are_equal(first, ask_all(model, config))
    lines = [record.getMessage() for record in caplog.records if "decomposed" in record.getMessage()]
    assert lines[0].startswith("decomposed 14 of 14 weights in ")
    assert lines[0].endswith(", 0 of them read from the cache")
    assert lines[1].endswith(", 14 of them read from the cache")


def test_adaptive_ranks_follow_the_ratios_of_samples_spread_over_the_data(
    model: PreTrainedModel, config: TrainingConfig
) -> None:
    config = replace(config, rank_allocation="adaptive")
    targets = find_targets(model)
    samples = make_samples(10 * ADAPTIVE_SAMPLES)
    spread = [samples[round(index * 319 / 31)] for index in range(32)]
    ratios = adaptive_ratios(model, targets, equal_length_batches(spread, 128), 0.25)

    source = choose_source(model, targets, config, samples, None)

    ranks = {}
    for target in targets:
        weight = target_parameter(model, target).detach()
        ranks[target.name] = source(target.name, weight).left.shape[1]
        assert ranks[target.name] == frozen_rank(*weight.shape, ratios[target.name])
    assert ranks["model.layers.0.self_attn.q_proj"] != ranks["model.layers.1.self_attn.q_proj"]


def test_in_a_process_group_the_ratios_are_the_first_processes(model: PreTrainedModel, config: TrainingConfig) -> None:
    config = replace(config, rank_allocation="adaptive")
    alone = ask_all(model, config)

    with process_group():
        in_group = ask_all(model, config)

    assert are_equal(in_group, alone)


def test_stacked_experts_keep_their_own_directions_beside_measured_inputs(
    config: TrainingConfig, messages_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    moe = Qwen3MoeConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(moe)
    targets = find_targets(model)
    config = replace(config, protect_inputs_of=str(messages_file), protect_weights=False)
    experts: Target = next(target for target in targets if target.parameter_name == "down_proj")
    weight = target_parameter(model, experts).detach()

    source = choose_source(model, targets, config, make_samples(8), None)

    expected = protect_leading_directions(weight[2], 0.25)
    assert torch.equal(source(f"{experts.name}[2]", weight[2]).left, expected.left.float())
    attach(model, targets, source)
    assert "measured the inputs of 4 weights" in caplog.text
    assert "2 of 6 weights have no inputs of their own" in caplog.text
    # Four of attention, four experts of two stacks.
    assert "of 12 weights" in caplog.text


def test_too_little_text_for_the_directions_is_said(
    model: PreTrainedModel, config: TrainingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_bytes(b'{"document": "short"}\n')

    ask_all(model, replace(config, protect_inputs_of=str(text)))

    assert "has 6 tokens, fewer than the 60 directions" in caplog.text


def test_a_text_that_does_not_exist_is_an_error(model: PreTrainedModel, config: TrainingConfig) -> None:
    with pytest.raises(MissingPathError, match=r"nowhere\.jsonl: there is no such file"):
        ask_all(model, replace(config, protect_inputs_of="nowhere.jsonl"))
