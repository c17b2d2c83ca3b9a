"""Requests of token ids, and a server that speaks OpenAI's completions protocol for a real tiny model."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW_TOKENS = 256


def token_request(context: list[int], answer: list[int]) -> Instance:
    return Instance(
        request_type="loglikelihood_of_tokens",
        doc={"row": 7},
        arguments=("", "", context, answer),
        idx=0,
        metadata=("holdout", 0, 1),
    )


def writing_request(context: list[int], *, max_tokens: int, until: list[str] | None = None) -> Instance:
    return Instance(
        request_type="generate_from_tokens",
        doc={"row": 7},
        arguments=("", context, {"max_gen_toks": max_tokens, "until": until or []}),
        idx=0,
        metadata=("holdout", 0, 1),
    )


def text_request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))


class Requests:
    """Makers of requests, for tests: a conftest cannot be imported under importlib's import mode."""

    score = staticmethod(token_request)
    write = staticmethod(writing_request)
    text = staticmethod(text_request)


@pytest.fixture(scope="session")
def requests_of() -> type[Requests]:
    return Requests


class CompletionsServer(ThreadingHTTPServer):
    """Serves one model as vLLM does: prompts as ids or text, echo with log-probabilities, greedy decoding."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), CompletionsHandler)
        self.name = str(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()
        self.payloads: list[dict[str, Any]] = []
        self.key: str | None = None
        self.refusals: list[int] = []
        """Statuses of the next answers."""
        self.extra_tokens: list[int] = []
        """Put in front of each prompt, as a server does that adds a first token by itself."""
        self.scores_prompts = True
        self.broken = False
        self.page: bytes | None = None
        """Answered to everything."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/completions"

    @torch.no_grad()
    def logarithms(self, ids: list[int]) -> torch.Tensor:
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)

    def choice(self, prompt: list[int] | str, payload: dict[str, Any]) -> dict[str, Any]:
        ids = [*self.extra_tokens, *(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)]
        start, text = len(ids), ""
        while len(ids) - start < payload["max_tokens"]:
            ids.append(int(self.logarithms(ids)[-1].argmax()))
            text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
            found = [text.index(stop) for stop in payload.get("stop") or [] if stop in text]
            if found or ids[-1] == self.model.config.eos_token_id:
                text = text[: min(found)] if found else text
                break
        choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
        if payload.get("echo") and self.scores_prompts:
            choice["logprobs"] = self.logprobs(ids)
        return choice

    def logprobs(self, ids: list[int]) -> dict[str, Any]:
        given: list[float | None] = [None]
        best: list[dict[str, float] | None] = [None]
        for token, row in zip(ids[1:], self.logarithms(ids[:-1]), strict=True):
            top = int(row.argmax())
            given.append(float("nan") if self.broken else float(row[token]))
            # Keyed by the text of a token, so that two that are no whole character share an entry: the last stays.
            best.append({self.tokenizer.decode([one]): float(row[one]) for one in (token, top)})
        return {"token_logprobs": given, "top_logprobs": best}


class CompletionsHandler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def log_message(self, format: str, *args: Any) -> None:
        """Keep standard error clean."""

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = self.server.page or json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": self.server.name, "max_model_len": WINDOW_TOKENS}]})

    def do_POST(self) -> None:
        server = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.payloads.append(payload)
        if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self.answer(401, {"error": {"message": "Unauthorized"}})
        if server.refusals:
            return self.answer(server.refusals.pop(0), {"error": {"message": "The engine\nis busy."}})
        if payload["model"] != server.name:
            return self.answer(404, {"error": {"message": f"The model `{payload['model']}` does not exist."}})
        prompts = payload["prompt"]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        choices = [server.choice(prompt, payload) | {"index": index} for index, prompt in enumerate(prompts)]
        # The order of choices is not promised.
        return self.answer(200, {"choices": choices[::-1]})


@pytest.fixture(scope="session")
def started_server(base_model: Path) -> Iterator[CompletionsServer]:
    server = CompletionsServer(base_model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(started_server: CompletionsServer) -> CompletionsServer:
    started_server.payloads.clear()
    started_server.refusals.clear()
    started_server.key, started_server.extra_tokens = None, []
    started_server.scores_prompts, started_server.broken, started_server.page = True, False, None
    return started_server
