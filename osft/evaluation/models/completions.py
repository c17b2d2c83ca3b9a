"""A server that speaks OpenAI's completions protocol: vLLM, text-generation-inference, llama.cpp, ...

The key comes from ``OPENAI_API_KEY`` and goes nowhere but into the request's header. What asking again may mend (a busy
or restarting server) is asked again; a wrong address, key or name is not. A message names the server's own words on
one line, and never a prompt.

Source: https://platform.openai.com/docs/api-reference/completions (legacy: chat completions score no given text).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import requests
import tenacity

from osft.errors import ConfigError, EvaluationError, one_line

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
SUFFIX = "/completions"
CHAT_SUFFIX = "/chat/completions"
TIMEOUT_SECONDS = (10, 600)
"""To connect, and for an answer: a batch of long texts waits in the server's queue."""

ATTEMPTS = 5
RETRY_SECONDS = 1.0
"""Before the second attempt; twice as long before each further one."""

TRANSIENT = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
MENDS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: f"Set {KEY_VARIABLE} to a key that the server takes.",
    HTTPStatus.FORBIDDEN: f"Set {KEY_VARIABLE} to a key that may use this model.",
    HTTPStatus.NOT_FOUND: "Check base_url and the model's name (GET /v1/models lists what is served).",
}
MUST_SCORE = "It must score given token ids (echo with logprobs), as vLLM's completions endpoint does."
MAX_REASON_CHARACTERS = 200
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What reading an answer of another form than expected ends with."""


class _PassingError(EvaluationError):
    """A failure that asking again may mend."""


class CompletionsClient:
    """Sends requests to one endpoint."""

    def __init__(self, url: str) -> None:
        """Check the address.

        Args:
            url: of the endpoint, ending with ``/completions``.

        Raises:
            ConfigError: if it ends otherwise.
        """
        if url.endswith(CHAT_SUFFIX):
            raise ConfigError(
                f"base_url '{url}' is an endpoint for chat, which gives no log-likelihoods of given answers. "
                f"Give the same server's {url.removesuffix(CHAT_SUFFIX)}{SUFFIX}."
            )
        if not url.endswith(SUFFIX):
            raise ConfigError(f"base_url is '{url}'. Give the whole address, e.g. http://localhost:8000/v1{SUFFIX}.")
        self.url = url
        self._has_answered = False

    def complete(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            EvaluationError: if the server cannot be reached or refuses.
        """
        asking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=RETRY_SECONDS, max=30),
            reraise=True,
        )
        return asking(self._ask, payload)

    def check_scores(self, model: str, ids: Sequence[int]) -> None:
        """Refuse a server that does not score given tokens.

        Raises:
            EvaluationError: also if it cannot be reached or does not know the model.
        """
        prompt_logprobs(self.complete(score_payload(model, [list(ids)])), [list(ids)], url=self.url)

    def context_tokens(self, model: str) -> int | None:
        """Return how many tokens the server takes for a model; None where it does not say (an extension of vLLM)."""
        try:
            response = requests.get(
                self.url.removesuffix(SUFFIX) + "/models", headers=_header(), timeout=TIMEOUT_SECONDS
            )
            models = response.json()["data"] if response.ok else []
            length = next((one.get("max_model_len") for one in models if one["id"] == model), None)
        except (requests.RequestException, *MALFORMED) as error:
            logger.info("%s does not list its models (%s)", self.url, type(error).__name__)
            return None
        return length if isinstance(length, int) else None

    def _ask(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = requests.post(self.url, json=payload, headers=_header(), timeout=TIMEOUT_SECONDS)
        except requests.RequestException as error:
            # A server that never answered is most likely not there; one that did may be starting again.
            kind = _PassingError if self._has_answered or isinstance(error, requests.ReadTimeout) else EvaluationError
            raise kind(
                f"{self.url} cannot be reached ({type(error).__name__}). Check base_url and that the server runs."
            ) from error
        if not response.ok:
            raise self._refusal(response)
        self._has_answered = True
        try:
            answer = response.json()
        except ValueError as error:
            raise EvaluationError(f"{self.url} does not answer with JSON. Check base_url.") from error
        if not isinstance(answer, dict):
            raise EvaluationError(f"{self.url} does not answer with a JSON object. Check base_url.")
        if answer.get("error"):
            # Some servers say so under status 200.
            raise self._refusal(response)
        return answer

    def _refusal(self, response: requests.Response) -> EvaluationError:
        status = response.status_code
        kind = _PassingError if status in TRANSIENT else EvaluationError
        mend = MENDS.get(status, "Look at the server's log.")
        return kind(f"{self.url} answers {status} {response.reason}: {_reason(response)}. {mend}")


def score_payload(model: str, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Return the request for the log-likelihoods of given tokens; one token more is generated, and not looked at."""
    return {"model": model, "prompt": list(prompts), "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}


def prompt_logprobs(
    answer: Mapping[str, Any], prompts: Sequence[Sequence[int]], *, url: str
) -> list[list[tuple[float, bool]]]:
    """Return ``(log-likelihood, is the most likely)`` of each token but the first of each prompt.

    Args:
        answer: to :func:`score_payload`.
        prompts: token ids, as they were sent.
        url: for the error.

    Raises:
        EvaluationError: if the server does not echo the prompt's log-likelihoods, token by token.
    """
    try:
        choices = _choices(answer, len(prompts), url=url)
        return [_token_scores(choice, len(prompt), url=url) for choice, prompt in zip(choices, prompts, strict=True)]
    except MALFORMED as error:
        raise EvaluationError(
            f"{url} gives log-likelihoods in another form than OpenAI's completions ({type(error).__name__}: "
            f"{one_line(error)}). {MUST_SCORE}"
        ) from error


def generated_texts(answer: Mapping[str, Any], num_prompts: int, *, url: str) -> list[str]:
    """Return the text that follows each prompt.

    Args:
        answer: to a request for texts.
        num_prompts: in that request.
        url: for the error.

    Raises:
        EvaluationError: if the server does not answer as OpenAI's completions do.
    """
    try:
        return [str(choice["text"] or "") for choice in _choices(answer, num_prompts, url=url)]
    except MALFORMED as error:
        raise EvaluationError(
            f"{url} gives texts in another form than OpenAI's completions ({type(error).__name__}: {one_line(error)}). "
            "Check base_url."
        ) from error


def _choices(answer: Mapping[str, Any], num_prompts: int, *, url: str) -> list[dict[str, Any]]:
    """Return what the server says to each prompt, in their order, which the answer's need not be."""
    choices = sorted(answer.get("choices") or [], key=lambda choice: choice["index"])
    if len(choices) != num_prompts:
        raise EvaluationError(f"{url} gives {len(choices)} answers to {num_prompts} prompts. Give batch_size 1.")
    return choices


def _token_scores(choice: Mapping[str, Any], num_tokens: int, *, url: str) -> list[tuple[float, bool]]:
    parts = choice.get("logprobs") or {}
    given, best = parts.get("token_logprobs") or [], parts.get("top_logprobs") or []
    # One is generated unless the text ends. A server that puts a token of its own in front shifts all places.
    if len(given) not in (num_tokens, num_tokens + 1) or len(best) != len(given) or None in given[1:]:
        raise EvaluationError(
            f"{url} gives {len(given)} log-likelihoods for a prompt of {num_tokens} tokens. {MUST_SCORE}"
        )
    return [(float(given[place]), given[place] >= max(best[place].values())) for place in range(1, num_tokens)]


def _header() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _reason(response: requests.Response) -> str:
    """Return what the server says is wrong, on one line."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = ""
    line = " ".join(str(text).split()).rstrip(".") or "no reason"
    return line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + "…"
