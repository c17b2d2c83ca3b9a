import logging
from pathlib import Path
from typing import Any

import pytest

from osft.errors import ConfigError, EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.completions import CompletionsClient, generated_texts, prompt_logprobs
from osft.evaluation.models.source import find_model


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osft.evaluation.models.completions.RETRY_SECONDS", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(url: str) -> EvaluationConfig:
    return EvaluationConfig(tasks=("anything",), backend="openai", base_url=url)


def test_served_model_is_found_with_its_tokenizer(server: Any, base_model: Path) -> None:
    source = find_model(str(base_model), config(server.url))

    assert source.folder is None
    assert source.vocabulary_size == 259
    assert source.has_chat_template


def test_server_that_is_not_there_is_an_error_at_once(base_model: Path) -> None:
    url = "http://127.0.0.1:9/v1/completions"

    with pytest.raises(EvaluationError, match=rf"{url} cannot be reached \(ConnectionError\). Check base_url"):
        find_model(str(base_model), config(url))


def test_wrong_key_is_an_error_that_does_not_name_it(
    server: Any, base_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = "right"
    monkeypatch.setenv("OPENAI_API_KEY", "wr0ng")

    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(EvaluationError, match="answers 401 .*Set OPENAI_API_KEY") as error,
    ):
        find_model(str(base_model), config(server.url))

    assert "wr0ng" not in str(error.value) + caplog.text
    assert len(server.payloads) == 1


def test_right_key_is_sent(server: Any, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "right"
    monkeypatch.setenv("OPENAI_API_KEY", "right")

    source = find_model(str(base_model), config(server.url))

    assert source.name == str(base_model)


def test_model_that_the_server_does_not_know_is_an_error(server: Any, damaged_model: Path) -> None:
    with pytest.raises(EvaluationError, match="answers 404 Not Found: The model .* does not exist. Check base_url and"):
        find_model(str(damaged_model), config(server.url))

    assert len(server.payloads) == 1


def test_busy_server_is_asked_again(server: Any, base_model: Path) -> None:
    server.refusals = [503, 429]

    source = find_model(str(base_model), config(server.url))

    assert source.name == str(base_model)


def test_server_that_stays_busy_is_an_error(server: Any, base_model: Path) -> None:
    server.refusals = [503] * 9

    with pytest.raises(
        EvaluationError, match="answers 503 Service Unavailable: The engine is busy. Look at the server"
    ):
        find_model(str(base_model), config(server.url))

    assert len(server.payloads) == 5


def test_server_that_does_not_score_prompts_is_an_error(server: Any, base_model: Path) -> None:
    server.scores_prompts = False

    with pytest.raises(EvaluationError, match="gives 0 log-likelihoods for a prompt of 7 tokens. It must score"):
        find_model(str(base_model), config(server.url))


def test_server_that_adds_a_token_is_an_error(server: Any, base_model: Path) -> None:
    server.extra_tokens = [5, 6]

    with pytest.raises(EvaluationError, match="gives 10 log-likelihoods for a prompt of 7 tokens"):
        find_model(str(base_model), config(server.url))


def test_endpoint_for_chat_is_an_error() -> None:
    with pytest.raises(ConfigError, match="gives no log-likelihoods .* Give the same server's http://a/v1/completions"):
        CompletionsClient("http://a/v1/chat/completions")


def test_address_of_no_endpoint_is_an_error() -> None:
    with pytest.raises(ConfigError, match="base_url is 'http://a/v1'. Give the whole address"):
        CompletionsClient("http://a/v1")


def test_answers_that_are_missing_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="gives 0 answers to 1 prompts. Give batch_size 1"):
        prompt_logprobs({"choices": []}, [[1, 2]], url="http://a/v1/completions")


def test_page_that_is_no_json_is_an_error(server: Any, base_model: Path) -> None:
    server.page = b"<html>"

    with pytest.raises(EvaluationError, match="does not answer with JSON. Check base_url"):
        find_model(str(base_model), config(server.url))


def scores(given: list[float | None], best: list[dict[str, float] | None]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "logprobs": {"token_logprobs": given, "top_logprobs": best}}]}


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"logprobs": None}, {"logprobs": None}]},
        {"choices": ["text"]},
        {"choices": 5},
        scores([None, -1.0], [None, None]),
        scores([None, -1.0], [None, {}]),
        {"choices": [{"index": 0, "logprobs": [1]}]},
    ],
)
def test_scores_in_another_form_are_an_error(answer: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="gives log-likelihoods in another form .*It must score given token ids"):
        prompt_logprobs(answer, [[1, 2]], url="http://a/v1/completions")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": [{"index": 0}]}, "gives texts in another form than OpenAI's completions .*KeyError: 'text'"),
        ({"choices": ["text"]}, "gives texts in another form than OpenAI's completions .*TypeError"),
        ({"choices": None}, "gives 0 answers to 1 prompts"),
    ],
)
def test_texts_in_another_form_are_an_error(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        generated_texts(answer, 1, url="http://a/v1/completions")


def test_text_that_is_kept_back_is_empty() -> None:
    texts = generated_texts({"choices": [{"index": 0, "text": None}]}, 1, url="http://a/v1/completions")

    assert texts == [""]


@pytest.mark.parametrize("page", [b"[1, 2]", b"5", b"null"])
def test_json_that_is_no_object_is_an_error(server: Any, base_model: Path, page: bytes) -> None:
    server.page = page

    with pytest.raises(EvaluationError, match="does not answer with a JSON object. Check base_url"):
        find_model(str(base_model), config(server.url))


def test_error_under_the_status_of_success_is_told(server: Any, base_model: Path) -> None:
    server.page = b'{"error": {"message": "out of\\nblocks"}}'

    with pytest.raises(EvaluationError, match="answers 200 OK: out of blocks. Look at the server's log"):
        find_model(str(base_model), config(server.url))


def test_window_is_the_servers_own_where_it_says_so(server: Any) -> None:
    client = CompletionsClient(server.url)

    windows = [client.context_tokens(name) for name in (server.name, "another")]

    assert windows == [256, None]


@pytest.mark.parametrize(
    "page",
    [
        b"<html>",
        b"[1]",
        b"{}",
        b'{"data": null}',
        b'{"data": ["a"]}',
        b'{"data": [{"id": "served", "max_model_len": "4096"}]}',
    ],
)
def test_server_that_does_not_list_its_models_does_no_harm(server: Any, page: bytes) -> None:
    server.page = page

    window = CompletionsClient(server.url).context_tokens("served")

    assert window is None
