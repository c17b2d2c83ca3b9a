import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.hugging_face import HuggingFaceModel
from osft.evaluation.models.source import find_model
from osft.evaluation.models.watched import end_token_ids

CONFIG = EvaluationConfig(tasks=("anything",))
TEXTS = ("a few words", "and some more of them, " * 15, "", "the end")


def load(folder: Path, *, label: str = "base", batch_size: int | str = 2) -> HuggingFaceModel:
    return HuggingFaceModel(find_model(str(folder), CONFIG), label=label, batch_size=batch_size)


@pytest.fixture(scope="module")
def model(base_model: Path) -> HuggingFaceModel:
    return load(base_model)


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_answers_that_begin_at_other_places_of_the_same_tokens_are_scored_each(
    requests_of: Any, base_model: Path, base_oracle: Any, batch_size: int | str
) -> None:
    ids = [10, 20, 30, 40, 50, 60]
    model = load(base_model, batch_size=batch_size)

    answers = model.loglikelihood_of_tokens([requests_of.score(ids[:start], ids[start:]) for start in (2, 4, 5)])

    assert [value for value, _ in answers] == pytest.approx(
        [base_oracle.loglikelihood(ids, start) for start in (2, 4, 5)], rel=1e-4
    )


def test_row_longer_than_the_models_window_is_an_error(requests_of: Any, model: HuggingFaceModel) -> None:
    with pytest.raises(EvaluationError, match="task holdout, row 7: 258 tokens, but the base model takes at most 257"):
        model.loglikelihood_of_tokens([requests_of.score([5] * 200, [6] * 58)])


def test_generated_tokens_are_the_greedy_ones_of_each_context(
    requests_of: Any, kit: Any, model: HuggingFaceModel, base_oracle: Any
) -> None:
    contexts = [base_oracle.prompt_ids(question[: 1 + number % 3]) for number, question in enumerate(kit.questions[:6])]
    expected = [
        base_oracle.greedy_text(question[: 1 + number % 3], 5) for number, question in enumerate(kit.questions[:6])
    ]

    texts = model.generate_from_tokens([requests_of.write(context, max_tokens=5) for context in contexts])

    assert texts == expected


def test_an_answer_ends_before_what_is_asked_for(
    requests_of: Any, kit: Any, model: HuggingFaceModel, base_oracle: Any
) -> None:
    question = kit.questions[0]
    whole = base_oracle.greedy_text(question, 8)
    until = whole[3:5]

    texts = model.generate_from_tokens(
        [requests_of.write(base_oracle.prompt_ids(question), max_tokens=8, until=[until])]
    )

    assert texts == [whole.split(until)[0]]


def test_an_answer_ends_with_the_window(requests_of: Any, model: HuggingFaceModel, base_oracle: Any) -> None:
    context = [50 + number % 40 for number in range(255)]
    tokens = base_oracle.greedy(context, 2)

    texts = model.generate_from_tokens([requests_of.write(context, max_tokens=100)])

    assert texts == [model.tokenizer.decode(tokens, skip_special_tokens=True)]


def test_context_that_leaves_no_room_is_an_error(requests_of: Any, model: HuggingFaceModel) -> None:
    with pytest.raises(EvaluationError, match="row 7: 258 tokens, but the base model takes at most 257"):
        model.generate_from_tokens([requests_of.write([5] * 257, max_tokens=1)])


def test_texts_longer_than_the_window_score_as_in_lm_eval(
    requests_of: Any, model: HuggingFaceModel, base_model: Path
) -> None:
    requests = [requests_of.text("loglikelihood_rolling", text) for text in TEXTS]
    plain = HFLM(pretrained=str(base_model), device="cpu", dtype="float32", batch_size=2)

    scores = model.loglikelihood_rolling(requests)

    assert scores == pytest.approx(plain.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5)


def test_settings_of_a_model_do_not_change_how_it_decodes(
    requests_of: Any, tmp_path: Path, base_model: Path, model: HuggingFaceModel
) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 5.0, "do_sample": True, "temperature": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    requests = [requests_of.write([40 + number, 50], max_tokens=12) for number in range(6)]
    text_requests = [requests_of.text("generate_until", text, {"max_gen_toks": 12}) for text in TEXTS if text]

    changed = load(folder)

    assert changed.generate_from_tokens(requests) == model.generate_from_tokens(requests)
    assert changed.generate_until(text_requests) == model.generate_until(text_requests)


def test_an_answer_ends_with_the_turn_where_the_tokenizer_names_another_end(
    kit: Any, tmp_path: Path, base_model: Path
) -> None:
    tokenizer = kit.byte_tokenizer()
    tokenizer.eos_token_id = 0

    ends = end_token_ids(tokenizer)

    assert tokenizer.convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|im_end|>"]


def test_tokenizer_without_a_template_ends_with_the_text(kit: Any) -> None:
    tokenizer = kit.byte_tokenizer()
    tokenizer.chat_template = None

    ends = end_token_ids(tokenizer)

    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>"]


def test_template_that_takes_no_conversation_ends_with_the_text(kit: Any) -> None:
    tokenizer = kit.byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only one message') }}"

    ends = end_token_ids(tokenizer)

    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>"]


def test_nan_while_generating_is_an_error(requests_of: Any, kit: Any, tmp_path: Path) -> None:
    model = load(kit.save_model(tmp_path / "broken", damage=float("nan")), label="tuned")
    request = requests_of.text("generate_until", "a", {"until": ["b"], "max_gen_toks": 2, "do_sample": False})

    with pytest.raises(EvaluationError, match="the tuned model gave NaN while generating"):
        model.generate_until([request])


def test_nan_while_scoring_is_an_error(requests_of: Any, kit: Any, tmp_path: Path) -> None:
    model = load(kit.save_model(tmp_path / "broken", damage=float("nan")), label="tuned")

    with pytest.raises(EvaluationError, match="the tuned model gave the log-likelihood nan"):
        model.loglikelihood([requests_of.text("loglikelihood", "a", "b")])


def test_weights_that_vanish_after_the_check_are_an_error(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    source = find_model(str(folder), CONFIG)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(EvaluationError, match=r"1 weights of the model are not .* \(model.norm.weight\)"):
        HuggingFaceModel(source, label="tuned", batch_size=1)


def test_weights_that_change_their_shape_after_the_check_are_an_error(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    source = find_model(str(folder), CONFIG)
    weights = load_file(folder / "model.safetensors") | {"model.norm.weight": torch.ones(5)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        EvaluationError, match=r"1 weights have another shape .* \(model.norm.weight: \[5\], not \[32\]\)"
    ):
        HuggingFaceModel(source, label="tuned", batch_size=1)


def test_output_layer_that_is_stored_beside_tied_embeddings_is_used(
    requests_of: Any, kit: Any, tmp_path: Path, base_model: Path
) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    model = load(folder)

    assert not torch.equal(served.lm_head.weight, served.model.embed_tokens.weight)
    assert torch.equal(model.model.lm_head.weight, served.lm_head.weight)


def test_embeddings_that_are_tied_stay_tied(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    model = load(folder)

    assert torch.equal(model.model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_automatic_batches_leave_standard_output_clean(
    requests_of: Any, base_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(base_model, batch_size="auto")

    model.loglikelihood([requests_of.text("loglikelihood", "a", "b")])
    model.loglikelihood_rolling([requests_of.text("loglikelihood_rolling", "some text")])
    model.generate_until([requests_of.text("generate_until", "a", {"max_gen_toks": 2})])

    written = capfd.readouterr()
    assert written.out == ""
    assert "it/s" not in written.err


def test_out_of_memory_names_the_batch(requests_of: Any, base_model: Path) -> None:
    model = load(base_model, label="tuned", batch_size=4)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(fail)

    with pytest.raises(EvaluationError, match="the tuned model ran out of memory on cpu with batches of 4 sequences"):
        model.loglikelihood([requests_of.text("loglikelihood", "a", "b")])


def test_progress_is_logged_by_the_line(
    requests_of: Any, base_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("osft.evaluation.models.watched.PROGRESS_SECONDS", 0.0)
    model = load(base_model, batch_size=1)

    with caplog.at_level(logging.INFO, logger="osft.evaluation.models.watched"):
        model.loglikelihood_of_tokens([requests_of.score([5, 6], [7]), requests_of.score([5, 8], [7])])

    assert caplog.messages == [
        "base: 2 requests of log-likelihood",
        "base: 1 of at most 2 requests done",
        "base: 2 of at most 2 requests done",
    ]
