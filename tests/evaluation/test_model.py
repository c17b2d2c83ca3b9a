import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from osft.errors import EvaluationError, MissingPathError
from osft.evaluation.model import EvaluatedModel, check_same_vocabulary, find_model


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "there are no weights"),
        ("tokenizer*", "there is no tokenizer"),
    ],
)
def test_folder_that_is_no_whole_model_is_an_error(
    tmp_path: Path, base_model: Path, missing: str, message: str
) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    for path in folder.glob(missing):
        path.unlink()

    with pytest.raises(EvaluationError, match=message):
        find_model(str(folder))


def test_missing_shard_is_an_error(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )

    with pytest.raises(EvaluationError, match=r"2 of 2 weight files are missing \(one.safetensors\)"):
        find_model(str(folder))


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="the folder does not exist"):
        find_model(str(tmp_path / "nowhere"))


def test_models_with_vocabularies_of_other_sizes_are_not_compared(kit: Any, tmp_path: Path, base_model: Path) -> None:
    larger = kit.save_model(tmp_path / "larger", vocab_size=300)

    with pytest.raises(EvaluationError, match="the model's vocabulary has 259 entries in base .* and 300 in tuned"):
        check_same_vocabulary(find_model(str(base_model)), find_model(str(larger)))


def test_tokenizers_of_other_sizes_are_not_compared(kit: Any, tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    tokenizer = kit.byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)

    with pytest.raises(EvaluationError, match="the tokenizer has 259 entries in base .* and 260 in tuned"):
        check_same_vocabulary(find_model(str(base_model)), find_model(str(folder)))


def token_request(context: list[int], answer: list[int]) -> Instance:
    return Instance(
        request_type="loglikelihood_of_tokens",
        doc={"row": 7},
        arguments=("", "", context, answer),
        idx=0,
        metadata=("holdout", 0, 1),
    )


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_answers_that_begin_at_other_places_of_the_same_tokens_are_scored_each(
    base_model: Path, base_oracle: Any, batch_size: int | str
) -> None:
    ids = [10, 20, 30, 40, 50, 60]
    model = EvaluatedModel(find_model(str(base_model)), label="base", batch_size=batch_size)

    answers = model.loglikelihood_of_tokens([token_request(ids[:start], ids[start:]) for start in (2, 4, 5)])

    assert [value for value, _ in answers] == pytest.approx(
        [base_oracle.loglikelihood(ids, start) for start in (2, 4, 5)], rel=1e-4
    )


def test_row_longer_than_the_models_window_is_an_error(base_model: Path) -> None:
    model = EvaluatedModel(find_model(str(base_model)), label="base", batch_size=2)

    with pytest.raises(EvaluationError, match="task holdout, row 7: 258 tokens, but the base model reads at most 256"):
        model.loglikelihood_of_tokens([token_request([5] * 200, [6] * 58)])


def test_nan_while_generating_is_an_error(kit: Any, tmp_path: Path) -> None:
    broken = kit.save_model(tmp_path / "broken", damage=float("nan"))
    model = EvaluatedModel(find_model(str(broken)), label="tuned", batch_size=1)
    request = Instance(
        request_type="generate_until",
        doc={},
        arguments=("a", {"until": ["b"], "max_gen_toks": 2, "do_sample": False}),
        idx=0,
    )

    with pytest.raises(EvaluationError, match="the tuned model gave NaN while generating"):
        model.generate_until([request])


def test_progress_is_logged_by_the_line(
    base_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("osft.evaluation.model.PROGRESS_SECONDS", 0.0)
    model = EvaluatedModel(find_model(str(base_model)), label="base", batch_size=1)

    with caplog.at_level(logging.INFO, logger="osft.evaluation.model"):
        model.loglikelihood_of_tokens([token_request([5, 6], [7]), token_request([5, 8], [7])])

    assert caplog.messages == [
        "base: 2 requests of log-likelihood",
        "base: 1 of at most 2 requests done",
        "base: 2 of at most 2 requests done",
    ]
