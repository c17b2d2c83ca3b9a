"""A model behind a server: lm-eval's class for completions endpoints, watched.

Prompts go out as token ids, made by the same rules as for a model in this process, so that both score the same
tokens. lm-eval's own loops are replaced: they draw bars, ask again whatever the failure, log texts that the server
returns, and take it for granted that the server scored as many tokens as were sent (0.4.13). Several batches are under
way at once, so that the server does not wait for the next one.

A server has settings of its own. vLLM takes a model's ``generation_config.json`` for what a request leaves open; start
it with ``--generation-config vllm`` so that both models decode plainly.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import (
    DEFAULT_MAX_LENGTH,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.completions import CompletionsClient, generated_texts, prompt_logprobs, score_payload
from osft.evaluation.models.source import ModelSource
from osft.evaluation.models.watched import TokenRequest, WatchedModel, end_token_ids, special_token_ids

logger = logging.getLogger(__name__)

BATCHES_UNDER_WAY = 4


class EndpointModel(WatchedModel, LocalCompletionsAPI):
    """A model that a server runs."""

    # The same prompts as in this process, also where a template takes no system message.
    apply_chat_template = HFLM.apply_chat_template

    def __init__(self, source: ModelSource, config: EvaluationConfig, *, label: str) -> None:
        """Ask the server how long a text may be.

        Args:
            source: name and tokenizer of a model that the server was asked about.
            config: address, prompts in one request, seed.
            label: what log lines and errors call it: ``base`` or ``tuned``.
        """
        self._watch(source, label=label)
        self._client = CompletionsClient(str(config.base_url))
        max_length = self._client.context_tokens(source.name) or resolve_max_length(
            None, source.tokenizer, default=DEFAULT_MAX_LENGTH
        )
        super().__init__(
            base_url=self._client.url,
            model=source.name,
            tokenizer_backend="huggingface",
            seed=config.seed,
            max_length=max_length,
        )
        self.tokenizer = source.tokenizer
        self.chat_template_args: dict[str, Any] = {}
        self._prompts_at_once = int(config.batch_size)

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request; the server generates one more."""
        return self.max_length

    def tok_encode(
        self, string: str, left_truncate_len: int | None = None, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return a text's token ids, by the rules of a model in this process: special tokens unless they are there."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that is generated for each request.

        Raises:
            EvaluationError: if the asked length of an answer leaves no room for a prompt, or the server fails.
        """
        del disable_tqdm
        self._progress.start("generation", len(requests))
        groups: dict[bytes, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[orjson.dumps(request.args[1], option=orjson.OPT_SORT_KEYS, default=str)].append(number)
        answers: dict[int, str] = {}
        for numbers in groups.values():
            settings = dict(normalize_gen_kwargs(requests[numbers[0]].args[1], self._max_gen_toks))
            room = self._room_for_prompts(requests[numbers[0]].task_name, settings["max_gen_toks"])
            contexts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            until = list(settings["until"])
            for number, text in zip(numbers, self._generate(contexts, settings), strict=True):
                answers[number] = postprocess_generated_text(text, until, None)
        return [answers[number] for number in range(len(requests))]

    def _room_for_prompts(self, task: str | None, max_tokens: int) -> int:
        """Return how many tokens of a prompt fit before an answer of ``max_tokens``."""
        window = self.max_length + 1
        if max_tokens >= window:
            raise EvaluationError(
                f"task {task}: max_gen_toks is {max_tokens}, but must be below the server's window of {window} tokens. "
                "Set a smaller one, or serve the model with a longer window."
            )
        return window - max_tokens

    def _answer_tokens(self, contexts: list[list[int]], *, max_tokens: int, until: list[str]) -> list[str]:
        return self._generate(contexts, {"max_gen_toks": max_tokens, "until": until, "temperature": 0})

    def _generate(self, contexts: Sequence[list[int]], settings: dict[str, Any]) -> list[str]:
        """Return the texts that follow ``contexts``, in their order."""
        ends = {*end_token_ids(self.tokenizer), *special_token_ids(self.tokenizer, settings["until"])}
        # Texts leave out special tokens, so that a server would look for one in vain. vLLM and SGLang take their ids;
        # the others that do not know the field pass over it, and end where the model's own settings say.
        settings = settings | {"stop_token_ids": sorted(ends)}
        batches = _batched(contexts, self._prompts_at_once)
        payloads = [
            self._create_payload(batch, generate=True, gen_kwargs=dict(settings), seed=self._seed, eos=None)
            for batch in batches
        ]
        texts: list[str] = []
        for batch, answer in zip(batches, self._complete_all(payloads), strict=True):
            texts += generated_texts(answer, len(batch), url=self._client.url)
            self._progress.advance(len(batch))
        return texts

    def _loglikelihood_tokens(self, requests: list[TokenRequest], **_: Any) -> list[tuple[float, bool]]:
        order = sorted(range(len(requests)), key=lambda number: -len(requests[number][1]) - len(requests[number][2]))
        # What does not fit is cut off on the left, as for a model in this process.
        prompts = [(requests[number][1] + requests[number][2])[-self.max_length :] for number in order]
        batches = _batched(prompts, self._prompts_at_once)
        scores: list[list[tuple[float, bool]]] = []
        for batch, answer in zip(
            batches, self._complete_all([score_payload(self.model, batch) for batch in batches]), strict=True
        ):
            scores += prompt_logprobs(answer, batch, url=self._client.url)
            self._progress.advance(len(batch))
        answers: dict[int, tuple[float, bool]] = {}
        for number, tokens in zip(order, scores, strict=True):
            num_scored = len(requests[number][2])
            if num_scored > len(tokens):
                raise EvaluationError(
                    f"an answer of {num_scored} tokens does not fit the server's window of {self.max_length}. "
                    "Serve the model with a longer one."
                )
            own = tokens[-num_scored:]
            answers[number] = sum(value for value, _ in own), all(is_best for _, is_best in own)
        return self._check_finite([answers[number] for number in range(len(requests))])

    def _complete_all(self, payloads: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the answers in order, a few requests ahead; after an error the rest is not asked."""
        pool = ThreadPoolExecutor(BATCHES_UNDER_WAY)
        try:
            yield from pool.map(self._client.complete, payloads)
        finally:
            pool.shutdown(cancel_futures=True)


def _batched(prompts: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    return [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
