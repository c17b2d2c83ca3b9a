"""The probe against both models in memory at once, with all their logits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from osft.errors import DataError, EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import find_model
from osft.evaluation.probe import ProbeComparison, base_states, compare_on_probe, remember_on_probe, side_by_side
from osft.evaluation.probe.base_states import STATES_NAME, write_states
from osft.evaluation.probe.comparison import summarize
from osft.evaluation.probe.side_by_side import compare_logits, compare_states
from osft.evaluation.probe.windows import cut_into_windows

Kit = Any
VOCAB_SIZE = 259
WINDOW = 64
FIRST_TOKEN = 1
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": FIRST_TOKEN, "eos_token_id": 2, "max_position_embeddings": WINDOW,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "qwen3, tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "qwen3, experts": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    ),
    "gemma2, capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=5.0)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, initializer_range=0.3)
    ),
}


class Qwen3WithItsOwnLogits(Qwen3ForCausalLM):
    """What no configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.sin()
        return outputs


def make_model(family: str, *, damage: float = 0.0, only: str = "") -> PreTrainedModel:
    """Return a model; damaged, noise is added to the parameters whose names begin with ``only``."""
    torch.manual_seed(0)
    model = FAMILIES[family]() if family in FAMILIES else Qwen3WithItsOwnLogits(Qwen3Config(**SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(only):
                parameter += damage * torch.randn_like(parameter)
    return model.eval()


def make_documents() -> tuple[tuple[int, ...], ...]:
    """Return documents shorter than a window, longer, and as long as one or two; every other has a first token."""
    generator = np.random.default_rng(0)
    lengths = [5, 200, WINDOW - 1, WINDOW, WINDOW + 1, 2, 3, 2 * WINDOW, 17]
    bodies = [generator.integers(3, VOCAB_SIZE, length).tolist() for length in lengths]
    return tuple((FIRST_TOKEN, *body) if number % 2 else tuple(body) for number, body in enumerate(bodies))


DOCUMENTS = make_documents()


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    tokens: int
    base_perplexity: float
    tuned_perplexity: float
    kl: float
    agreement: float


@torch.no_grad()
def expected_comparison(base: PreTrainedModel, tuned: PreTrainedModel) -> Expected:
    """Compare two models window by window, with all logits, in float64."""
    values = []
    for window in windows_by_hand(DOCUMENTS):
        ids = torch.tensor([window])
        log_p, log_q = (model(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for model in (base, tuned))
        targets = ids[0, 1:, None]
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        agrees = (log_p.argmax(-1) == log_q.argmax(-1)).double()
        values.append(torch.stack([-log_p.gather(1, targets)[:, 0], -log_q.gather(1, targets)[:, 0], kl, agrees]))
    of_all = torch.cat(values, dim=1)
    base_surprise, tuned_surprise, kl, agreement = of_all.mean(dim=1).tolist()
    return Expected(
        tokens=of_all.shape[1],
        base_perplexity=math.exp(base_surprise),
        tuned_perplexity=math.exp(tuned_surprise),
        kl=kl,
        agreement=agreement,
    )


def windows_by_hand(documents: Sequence[Sequence[int]]) -> list[list[int]]:
    windows = []
    for document in map(list, documents):
        first = document[:1] if document[0] == FIRST_TOKEN else []
        body, size = document[len(first) :], WINDOW - len(first)
        windows += [first + body[start : start + size] for start in range(0, len(body), size)]
    return [window for window in windows if len(window) > 1]


def compare_in_memory(base: PreTrainedModel, tuned: PreTrainedModel, folder: Path) -> ProbeComparison:
    """Do what the probe does where the models are."""
    write_states(base, folder / STATES_NAME, DOCUMENTS, FIRST_TOKEN, "base")
    return summarize(compare_states(tuned, folder / STATES_NAME, len(DOCUMENTS)))


def assert_is(comparison: ProbeComparison, expected: Expected, *, relative: float) -> None:
    assert (comparison.documents, comparison.tokens) == (len(DOCUMENTS), expected.tokens)
    assert comparison.base_perplexity == pytest.approx(expected.base_perplexity, rel=relative)
    assert comparison.tuned_perplexity == pytest.approx(expected.tuned_perplexity, rel=relative)
    assert comparison.kl == pytest.approx(expected.kl, rel=relative)
    assert comparison.agreement == pytest.approx(expected.agreement, abs=1e-12)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions at a time: no batch has a multiple of them."""
    monkeypatch.setattr(side_by_side, "LOGITS_AT_ONCE", 7 * VOCAB_SIZE)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("family", "damaged"),
    [*((family, "") for family in (*FAMILIES, "its own logits")), ("qwen3", "lm_head"), ("qwen3", "model")],
)
def test_a_comparison_is_that_of_all_logits_of_both_models(family: str, damaged: str, tmp_path: Path) -> None:
    base, tuned = make_model(family), make_model(family, damage=0.1, only=damaged)

    comparison = compare_in_memory(base, tuned, tmp_path)

    # Float32 against float64, over two layers and 259 logits.
    assert_is(comparison, expected_comparison(base, tuned), relative=1e-5)


@pytest.mark.parametrize("family", ["qwen3, tied", "qwen3, experts"])
def test_models_in_bfloat16_are_compared_in_float32(family: str, tmp_path: Path) -> None:
    base, tuned = (make_model(family, damage=damage).to(torch.bfloat16) for damage in (0.0, 0.1))

    comparison = compare_in_memory(base, tuned, tmp_path)

    expected = expected_comparison(base, tuned)
    # The models' own rounding, which differs between a padded batch and one window: 2^-8 a number.
    assert comparison.tuned_perplexity == pytest.approx(expected.tuned_perplexity, rel=4e-3)
    assert comparison.kl == pytest.approx(expected.kl, rel=4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "its own logits"])
def test_a_model_is_at_no_distance_at_all_from_itself(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, same = make_model(family).to(dtype), make_model(family).to(dtype)

    comparison = compare_in_memory(base, same, tmp_path)

    assert (comparison.kl, comparison.kl_low, comparison.kl_high, comparison.agreement) == (0.0, 0.0, 0.0, 1.0)
    assert comparison.base_perplexity == comparison.tuned_perplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """Two models on disk and a cache."""

    base: Path
    tuned: Path
    cache: Path

    def load(self, name: str, kind: type[LazyModel] = LazyModel) -> LazyModel:
        config = EvaluationConfig(tasks=("none",))
        return kind(find_model(str(getattr(self, name)), config), config, label=name, memo=self.cache / "memo")

    def remember(self, kind: type[LazyModel] = LazyModel) -> Path:
        with self.load("base", kind) as model:
            return remember_on_probe(model, DOCUMENTS, self.cache)

    def compare(self, kind: type[LazyModel] = LazyModel) -> ProbeComparison:
        remembered = self.remember(kind)
        with self.load("tuned", kind) as model:
            return compare_on_probe(remembered, model, DOCUMENTS, self.cache)


class NeverAsked(LazyModel):
    """A model that must not be needed."""

    def run(self, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"the {self.label} model was asked")


@pytest.fixture
def lab(tmp_path: Path, kit: Kit) -> Lab:
    for name, damage in (("base", 0.0), ("tuned", 0.1)):
        make_model("qwen3", damage=damage).save_pretrained(tmp_path / name)
        kit.byte_tokenizer().save_pretrained(tmp_path / name)
    return Lab(base=tmp_path / "base", tuned=tmp_path / "tuned", cache=tmp_path / "cache")


def in_folder(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_models_on_disk_are_compared_one_after_the_other(lab: Lab) -> None:
    comparison = lab.compare()

    # The byte tokenizer has no first token, so windows begin as they are cut.
    assert comparison.documents == len(DOCUMENTS)
    assert comparison.tokens == sum(len(ids) - math.ceil(len(ids) / WINDOW) for ids in DOCUMENTS)
    assert 0 < comparison.kl_low < comparison.kl < comparison.kl_high


def test_what_is_known_is_not_asked_again(lab: Lab) -> None:
    first = lab.compare()

    second = lab.compare(NeverAsked)

    assert second == first


def test_tokens_that_the_model_does_not_know_are_refused(lab: Lab) -> None:
    with (
        lab.load("base", NeverAsked) as model,
        pytest.raises(DataError, match=r"document 2 of the probe has the token id 259, but .* entries\. Save"),
    ):
        remember_on_probe(model, ((3, 4), (5, VOCAB_SIZE, 6)), lab.cache)


def test_another_text_is_another_question(lab: Lab) -> None:
    remembered = lab.remember()

    with lab.load("base") as model:
        other = remember_on_probe(model, DOCUMENTS[:-1], lab.cache)

    assert other != remembered


def test_damaged_files_are_measured_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    first = lab.compare()
    states = lab.remember() / STATES_NAME
    states.write_bytes(states.read_bytes()[:-100])
    for kept in (lab.cache / "probe").glob("*.json"):
        kept.write_text('{"documents": 3')

    second = lab.compare()

    assert second == first
    assert f"{states}: cannot be read" in caplog.text
    assert ".json: cannot be read" in caplog.text


def test_what_became_unreadable_meanwhile_is_an_error(lab: Lab) -> None:
    remembered = lab.remember()
    (remembered / STATES_NAME).write_bytes(b"no tensors")

    with (
        lab.load("tuned") as model,
        pytest.raises(EvaluationError, match=r"what was kept of the base model cannot be read .*Delete it"),
    ):
        compare_on_probe(remembered, model, DOCUMENTS, lab.cache)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("label", "part"), [("base", "norm"), ("tuned", "norm"), ("base", "head"), ("tuned", "head")])
def test_broken_weights_give_an_error_and_no_number(label: str, part: str, value: float, tmp_path: Path) -> None:
    models = {"base": make_model("qwen3"), "tuned": make_model("qwen3", damage=0.1)}
    broken = models[label]
    with torch.no_grad():
        (broken.model.norm.weight if part == "norm" else broken.lm_head.weight[7])[3] = value

    with pytest.raises(EvaluationError, match=f"the {label} model gave a number that is not finite.*are broken"):
        compare_in_memory(models["base"], models["tuned"], tmp_path)


def test_models_that_scale_their_logits_differently_are_refused(tmp_path: Path) -> None:
    base, tuned = make_model("granite, divided"), make_model("granite, divided")
    tuned.config.logits_scaling = 4.0

    with pytest.raises(EvaluationError, match=r"make their logits differently: .*8\.0.*4\.0.*Compare a model with"):
        compare_in_memory(base, tuned, tmp_path)


def test_a_tuned_model_with_a_shorter_window_is_refused(tmp_path: Path) -> None:
    base, tuned = make_model("qwen3"), make_model("qwen3")
    tuned.config.max_position_embeddings = WINDOW - 1

    with pytest.raises(EvaluationError, match="reads at most 63 tokens, the base at least 64"):
        compare_in_memory(base, tuned, tmp_path)


def test_logits_that_are_too_many_to_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_states, "MAX_STATES_BYTES", 100 * VOCAB_SIZE * 4)

    with pytest.raises(EvaluationError, match=r"in a way of its own, .* would be kept\. Give a probe of at most 100"):
        write_states(make_model("its own logits"), tmp_path / STATES_NAME, DOCUMENTS, None, "base")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"GB that the base model makes of the probe cannot be kept \(.*Free space"
    ):
        write_states(make_model("qwen3"), tmp_path / "gone" / STATES_NAME, DOCUMENTS, None, "base")


@settings(max_examples=50, deadline=None)
@given(
    bodies=st.lists(st.lists(st.integers(3, 9), min_size=2, max_size=40), min_size=1, max_size=5),
    has_first=st.booleans(),
    window_tokens=st.integers(2, 12),
)
def test_windows_hold_every_token_once(bodies: list[list[int]], has_first: bool, window_tokens: int) -> None:
    documents = [[FIRST_TOKEN, *body] if has_first else body for body in bodies]

    windows = cut_into_windows(documents, window_tokens=window_tokens, first_token=FIRST_TOKEN)

    assert all(2 <= len(window.input_ids) <= window_tokens for window in windows)
    for number, body in enumerate(bodies):
        parts = [window.input_ids[int(has_first) :].tolist() for window in windows if window.row == number]
        size = window_tokens - has_first
        by_hand = [body[start : start + size] for start in range(0, len(body), size)]
        assert sorted(parts) == sorted(part for part in by_hand if len(part) + has_first >= 2)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 3.0, 40.0]), change=st.sampled_from([1e-4, 0.1, 60.0]))
def test_token_values_are_their_formulas(seed: int, spread: float, change: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = spread * torch.randn(4, 500, generator=generator)
    tuned = base + change * torch.randn(4, 500, generator=generator)
    targets = torch.randint(500, (4,), generator=generator)

    values = compare_logits(base, tuned, targets)

    log_p, log_q = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
    at_target = (torch.arange(4), targets)
    expected_kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert_allclose(values[0], -log_p[at_target], rtol=1e-5, atol=1e-5)
    assert_allclose(values[1], -log_q[at_target], rtol=1e-5, atol=1e-5)
    # Float32 logits of up to 200 lie 1e-5 apart; a probability of 1 is known to 1e-7.
    assert_allclose(values[2], expected_kl, rtol=1e-5, atol=1e-7)
    assert (values[2] >= 0).all()
    assert_allclose(values[3], log_p.argmax(-1) == log_q.argmax(-1))


def totals_of(tokens: Sequence[float], kl: Sequence[float]) -> np.ndarray:
    ones = np.ones(len(tokens))
    return np.stack([np.array(tokens), ones, ones, np.array(kl), ones])


def test_documents_count_by_their_tokens() -> None:
    comparison = summarize(totals_of(tokens=[10, 90], kl=[1.0, 1.8]))

    assert (comparison.tokens, comparison.kl) == (100, pytest.approx(0.028))
    assert comparison.base_perplexity == pytest.approx(math.exp(0.02))


@pytest.mark.parametrize(("tokens", "kl"), [([10], [1.0]), ([10, 10, 20], [1.0, 1.0, 2.0])])
def test_documents_that_show_no_spread_have_no_interval(tokens: list[float], kl: list[float]) -> None:
    comparison = summarize(totals_of(tokens, kl))

    assert (comparison.kl_low, comparison.kl_high) == (None, None)


def test_an_interval_is_about_that_of_the_normal_distribution_and_the_same_each_time() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 150, 400).astype(float)
    kl = tokens * generator.gamma(4.0, 0.01, 400)

    first, second = summarize(totals_of(tokens, kl)), summarize(totals_of(tokens, kl))

    assert first == second
    rates_around_mean = (kl - first.kl * tokens) / tokens.mean()
    half_width = 1.96 * rates_around_mean.std() / math.sqrt(400)
    # 10,000 draws of the bootstrap know a quantile to 2% of the standard error.
    assert first.kl_low == pytest.approx(first.kl - half_width, abs=0.1 * half_width)
    assert first.kl_high == pytest.approx(first.kl + half_width, abs=0.1 * half_width)


def test_a_perplexity_beyond_all_floats_is_an_error() -> None:
    totals = totals_of(tokens=[1], kl=[1.0])
    totals[2] = 1000.0

    with pytest.raises(EvaluationError, match=r"the tuned model's perplexity on the probe overflows \(1000 nats"):
        summarize(totals)
