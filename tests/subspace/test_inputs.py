"""What a text's inputs protect: exactly measured, exactly kept."""

from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from osft.data.samples import Sample
from osft.errors import DataError, MissingPathError, TrainingError
from osft.subspace.attach import attach, merge, project_gradients
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank
from osft.subspace.inputs import (
    equal_length_batches,
    input_covariances,
    load_input_samples,
    protect_input_directions,
    run_text,
)
from osft.subspace.targets import find_targets

VOCABULARY = 259


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def make_gpt2() -> PreTrainedModel:
    """A model whose weights are ``[inputs, outputs]``."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64))


def make_samples(*lengths: int, vocabulary: int = VOCABULARY) -> list[Sample]:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, vocabulary, length, dtype=np.int32) for length in lengths]
    return [Sample(input_ids=ids, labels=ids, row=row) for row, ids in enumerate(texts, start=1)]


def catch_inputs(model: PreTrainedModel, samples: list[Sample]) -> dict[str, Tensor]:
    """Return all inputs ``[tokens, inputs]`` of each target, from one sample at a time through the whole model."""
    caught: dict[str, list[Tensor]] = {}
    hooks = [
        model.get_submodule(target.module_name).register_forward_pre_hook(
            lambda module, arguments, name=target.name: caught.setdefault(name, []).append(arguments[0].flatten(0, -2))
        )
        for target in find_targets(model)
    ]
    with torch.no_grad():
        for sample in samples:
            model.eval()(torch.from_numpy(sample.input_ids)[None].long())
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(pieces).double() for name, pieces in caught.items()}


@pytest.mark.parametrize("make_model", [None, make_gpt2], ids=["linear", "conv1d"])
def test_a_covariance_is_that_of_all_inputs_whatever_the_lengths_and_batches(
    model: PreTrainedModel, make_model: object
) -> None:
    model = make_gpt2() if make_model else model
    samples = make_samples(5, 9, 5, 3, 9, 9)
    inputs = catch_inputs(model, samples)

    covariances = input_covariances(model, find_targets(model), equal_length_batches(samples, max_tokens=20))

    assert covariances.keys() == inputs.keys()
    for name, rows in inputs.items():
        expected = rows.T @ rows / len(rows)
        # Rows of float32 activations, summed in float32.
        assert (covariances[name] - expected).norm() <= 1e-5 * expected.norm()


@given(lengths=st.lists(st.integers(1, 12), max_size=30), max_tokens=st.integers(1, 40))
def test_batches_hold_every_sample_once_without_padding_within_the_tokens(lengths: list[int], max_tokens: int) -> None:
    samples = make_samples(*lengths)

    batches = list(equal_length_batches(samples, max_tokens))

    rows = Counter(tuple(row) for batch in batches for row in batch.tolist())
    assert rows == Counter(tuple(sample.input_ids.tolist()) for sample in samples)
    assert all(batch.numel() <= max_tokens or len(batch) == 1 for batch in batches)


def test_experts_have_no_inputs_of_their_own() -> None:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)

    covariances = input_covariances(
        model, find_targets(model), equal_length_batches(make_samples(6, vocabulary=32), max_tokens=20)
    )

    assert sorted(name.rsplit(".", 1)[1] for name in covariances) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_a_weight_that_layers_share_has_the_inputs_of_them_all(model: PreTrainedModel) -> None:
    first, second = (layer.self_attn.q_proj for layer in model.model.layers)
    second.weight = first.weight
    samples = make_samples(9, 5)
    rows: list[Tensor] = []
    for layer in (first, second):
        layer.register_forward_pre_hook(lambda module, arguments: rows.append(arguments[0].detach().flatten(0, -2)))

    covariances = input_covariances(model, find_targets(model), equal_length_batches(samples, 20))

    inputs = torch.cat(rows)
    expected = inputs.T @ inputs / len(inputs)
    assert torch.allclose(covariances["model.layers.0.self_attn.q_proj"], expected, atol=1e-5)


def test_measuring_leaves_mode_and_hooks_of_the_model_as_they_were(model: PreTrainedModel) -> None:
    model.train()

    input_covariances(model, find_targets(model), equal_length_batches(make_samples(6), 20))

    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_inputs_that_are_not_finite_are_an_error_that_names_the_weight(model: PreTrainedModel) -> None:
    model.model.layers[1].input_layernorm.weight.data.fill_(torch.inf)

    with pytest.raises(TrainingError, match=r"the inputs of model\.layers\.1\.self_attn\.q_proj are not finite"):
        input_covariances(model, find_targets(model), equal_length_batches(make_samples(6), 20))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), tokens=st.integers(1, 40), ratio=st.floats(0, 1),
    inputs_are_columns=st.booleans(), join_weights=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_as_many_orthonormal_directions_of_the_inputs_as_the_ratio_leaves_and_none_of_the_outputs(
    rows: int, columns: int, tokens: int, ratio: float, inputs_are_columns: bool, join_weights: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    size, other = (columns, rows) if inputs_are_columns else (rows, columns)
    inputs = torch.randn(tokens, size, generator=generator)

    protected = protect_input_directions(
        weight, inputs.T @ inputs, ratio, inputs_are_columns=inputs_are_columns, join_weights=join_weights
    )

    of_inputs, of_outputs = protected.right, protected.left
    if not inputs_are_columns:
        of_inputs, of_outputs = of_outputs, of_inputs
    assert of_outputs.shape == (other, 0)
    assert of_inputs.shape == (size, frozen_rank(size, size, ratio))
    # float32 directions of up to 20 values.
    assert torch.allclose(of_inputs.T @ of_inputs, torch.eye(of_inputs.shape[1]), atol=1e-6)


def test_alone_the_directions_that_the_inputs_fill_come_first() -> None:
    used = torch.eye(6)[:, [1, 4, 5]]
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) @ used.T

    protected = protect_input_directions(
        torch.randn(4, 6), inputs.T @ inputs, 0.5, inputs_are_columns=True, join_weights=False
    )

    assert torch.allclose(protected.right @ protected.right.T, used @ used.T, atol=1e-6)


def test_joined_the_inputs_and_the_weights_own_directions_share_the_budget() -> None:
    # Weight along the axes 0 and 1, inputs along 4 and 5, with the same traces.
    weight, covariance = torch.zeros(4, 6), torch.zeros(6, 6)
    weight[0, 0], weight[1, 1] = 3.0, 0.1
    covariance[4, 4], covariance[5, 5] = 700.0, 0.5

    protected = protect_input_directions(weight, covariance, 0.6, inputs_are_columns=True, join_weights=True)

    # Two of six: the strongest of each.
    assert torch.allclose((protected.right**2).sum(dim=1), torch.tensor([1.0, 0, 0, 0, 1, 0]), atol=1e-6)


def test_a_weight_of_zeros_and_inputs_of_zeros_still_give_directions() -> None:
    protected = protect_input_directions(
        torch.zeros(3, 4), torch.zeros(4, 4), 0.5, inputs_are_columns=True, join_weights=True
    )

    assert torch.allclose(protected.right.T @ protected.right, torch.eye(2))


@pytest.mark.parametrize("join_weights", [False, True])
@pytest.mark.parametrize("make_model", [None, make_gpt2], ids=["linear", "conv1d"])
def test_what_a_layer_computes_for_protected_inputs_does_not_change_by_training(
    model: PreTrainedModel, make_model: object, join_weights: bool
) -> None:
    model = make_gpt2() if make_model else model
    targets = {target.name: target for target in find_targets(model)}
    covariances = input_covariances(model, list(targets.values()), equal_length_batches(make_samples(20, 9), 40))
    kept: dict[str, ProtectedSubspace] = {}

    def protect(name: str, weight: Tensor) -> ProtectedSubspace:
        columns = targets[name].inputs_are_columns
        kept[name] = protect_input_directions(
            weight, covariances[name], 0.5, inputs_are_columns=columns, join_weights=join_weights
        )
        return kept[name]

    attach(model, list(targets.values()), protect)
    inputs = {name: (side.right if targets[name].inputs_are_columns else side.left).T for name, side in kept.items()}
    before = {name: model.get_submodule(name)(rows).detach().clone() for name, rows in inputs.items()}
    start = {name: model.get_submodule(name).weight.detach().clone() for name in targets}

    train_a_little(model)

    for name, rows in inputs.items():
        layer = model.get_submodule(name)
        moved = (layer.weight - start[name]).detach().norm()
        assert moved > 0.01
        # float32 holds the merged weight to 6e-8 of its size; hundreds of products of directions of norm 1.
        assert (layer(rows) - before[name]).detach().norm() <= 1e-5 * (moved + start[name].norm())


def train_a_little(model: PreTrainedModel) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    ids = torch.from_numpy(make_samples(24)[0].input_ids)[None].long()
    for _ in range(4):
        model(ids, labels=ids).loss.backward()
        project_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        merge(model)


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return path


def test_messages_are_rendered_by_the_models_template_answered_or_not(tiny_model: Path, tmp_path: Path) -> None:
    question = {"role": "user", "content": "1 plus 1?"}
    answer = {"role": "assistant", "content": "2"}
    path = write_rows(tmp_path / "text.jsonl", [{"messages": [question, answer]}, {"messages": [question]}])

    samples = load_input_samples(path, str(tiny_model), 512, VOCABULARY)

    # The header and the end of each turn are tokens of the template; the characters are bytes.
    assert sorted(len(sample.input_ids) for sample in samples) == [17, 31]


def test_documents_are_cut_into_blocks_and_the_last_one_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "text.jsonl", [{"text": "a" * 20}, {"text": "b" * 5}])

    samples = load_input_samples(path, str(tiny_model), 10, VOCABULARY, document_column="text")

    # 20 and 5 bytes and an end each.
    assert [len(sample.input_ids) for sample in samples] == [10, 10, 7]


@pytest.mark.parametrize("as_folder", [False, True])
def test_token_ids_are_taken_as_they_are_and_cut(tiny_model: Path, tmp_path: Path, as_folder: bool) -> None:
    row: dict[str, object] = {"input_ids": list(range(12)), "labels": list(range(12))}
    name = "valid.jsonl" if as_folder else "tokens.jsonl"
    path = write_rows(tmp_path / name, [row])

    (sample,) = load_input_samples(tmp_path if as_folder else path, str(tiny_model), 10, VOCABULARY)

    assert sample.input_ids.tolist() == list(range(10))


def test_the_folder_of_a_processed_dataset_is_read(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    from osft.data.processing.process import process_dataset
    from osft.data.processing.report import ProcessingConfig

    config = ProcessingConfig(model=str(tiny_model), max_seq_len=512, holdout_fraction=0.0)
    process_dataset(messages_file, tmp_path / "data", config)

    samples = load_input_samples(tmp_path / "data", str(tiny_model), 512, VOCABULARY)

    assert len(samples) == 8


def test_long_messages_are_cut_not_dropped(tiny_model: Path, messages_file: Path) -> None:
    samples = load_input_samples(messages_file, str(tiny_model), 30, VOCABULARY)

    assert [len(sample.input_ids) for sample in samples] == [30] * 8


def test_a_text_that_is_not_there_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"absent\.jsonl: there is no such file"):
        load_input_samples(tmp_path / "absent.jsonl", str(tiny_model), 10, VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "1 plus 1?"}\n', "has none of the columns messages, input_ids, document"),
        (b"plain text\n", "Give JSON Lines of messages or documents"),
        (b"", "Give JSON Lines of messages or documents"),
    ],
)
def test_a_text_of_another_kind_is_an_error_that_says_what_is_known(
    tiny_model: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"text\.jsonl, first row: .*{message}"):
        load_input_samples(path, str(tiny_model), 10, VOCABULARY)


def test_a_pass_over_text_makes_no_logits(model: PreTrainedModel) -> None:
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(True))

    run_text(model, equal_length_batches(make_samples(6), 20))

    assert not called
