"""What every model under evaluation does beside lm-eval's own methods, whatever runs it.

Requests that carry token ids; log lines instead of progress bars (a step's output is a log file); and no number from a
broken model: a NaN logit makes argmax return some token, and lm-eval would score it like any other answer.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from osft.errors import EvaluationError
from osft.evaluation.models.source import ModelSource

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two log lines of progress."""

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's own form of a request: (texts, context ids, ids to score)."""


class Progress:
    """How many requests are done, said now and then."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._num_requests = 0
        self._next_report_seconds = 0.0
        self.num_done = 0

    def start(self, what: str, num_requests: int) -> None:
        """Begin a list of requests."""
        logger.info("%s: %d requests of %s", self._label, num_requests, what)
        self.num_done, self._num_requests = 0, num_requests
        self._next_report_seconds = time.monotonic() + PROGRESS_SECONDS

    def advance(self, num_sequences: int) -> None:
        """Count sequences that went through the model; requests that share one count as it."""
        self.reach(self.num_done + num_sequences)

    def reach(self, num_done: int) -> None:
        """Say how far it is, if it was not said in the last ``PROGRESS_SECONDS``."""
        self.num_done = num_done
        if (now := time.monotonic()) >= self._next_report_seconds:
            logger.info("%s: %d of at most %d requests done", self._label, num_done, self._num_requests)
            self._next_report_seconds = now + PROGRESS_SECONDS


class WatchedModel(TemplateLM):
    """To be inherited before one of lm-eval's models, which scores and generates.

    A subclass calls :meth:`_watch` before lm-eval's constructor, and has :meth:`_answer_tokens`.
    """

    def _watch(self, source: ModelSource, *, label: str, progress: Progress | None = None) -> None:
        """Remember whom this is about.

        Args:
            source: a model that was found whole.
            label: what log lines and errors call it: ``base`` or ``tuned``.
            progress: where sequences are counted, if not in a log.
        """
        self._source = source
        self._label = label
        self._progress = progress or Progress(label)

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request that can be scored, context and answer together."""
        raise NotImplementedError

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return ``(log-likelihood, is greedy)`` of each request's continuation."""
        del disable_tqdm  # bars never are
        self._progress.start("log-likelihood", len(requests))
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each request's whole text, in lm-eval's windows.

        lm-eval scores the windows of one text (or of one batch) after those of another; here all of them are one list,
        sorted by length.
        """
        del disable_tqdm
        owners: list[int] = []
        windows: list[TokenRequest] = []
        for owner, request in enumerate(requests):
            tokens = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.longest_request - 1,
                context_len=1,
            )
            for context, predicted in map(make_disjoint_window, tokens):
                owners.append(owner)
                windows.append((None, context, predicted))
        self._progress.start("rolling log-likelihood", len(windows))
        parts: list[list[float]] = [[] for _ in requests]
        for owner, (loglikelihood, _) in zip(owners, self._score_unshared(windows), strict=True):
            parts[owner].append(loglikelihood)
        return [math.fsum(part) for part in parts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that is generated for each request."""
        del disable_tqdm
        self._progress.start("generation", len(requests))
        return super().generate_until(requests, disable_tqdm=True)

    def loglikelihood_of_tokens(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return ``(log-likelihood, is greedy)`` of requests ``(context, answer, context ids, answer ids)``.

        Raises:
            EvaluationError: if a request is longer than the model's window: cut off, it would be another question.
        """
        for request in requests:
            self._check_fits(request, len(request.args[2]) + len(request.args[3]))
        self._progress.start("log-likelihood", len(requests))
        return self._score_unshared([((one.args[0], one.args[1]), one.args[2], one.args[3]) for one in requests])

    def generate_from_tokens(self, requests: list[Instance]) -> list[str]:
        """Return the greedy answers to requests ``("", context ids, {"max_gen_toks": n, "until": [texts]})``.

        An answer ends before the first of ``until``, before the token that ends a turn or a text, or at the end of the
        model's window. It has no special tokens.

        Raises:
            EvaluationError: if a context leaves no room for an answer.
        """
        self._progress.start("generation", len(requests))
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            context, settings = request.args[1], request.args[2]
            self._check_fits(request, len(context) + 1)
            max_tokens = min(settings["max_gen_toks"], self.longest_request - len(context))
            groups[max_tokens, tuple(settings.get("until") or ())].append(number)
        answers: dict[int, str] = {}
        for (max_tokens, until), numbers in groups.items():
            numbers.sort(key=lambda number: -len(requests[number].args[1]))
            contexts = [list(requests[number].args[1]) for number in numbers]
            texts = self._answer_tokens(contexts, max_tokens=max_tokens, until=list(until))
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = postprocess_generated_text(text, list(until), None)
        return [answers[number] for number in range(len(requests))]

    def close(self) -> None:
        """Give back what the model holds."""

    def _answer_tokens(self, contexts: list[list[int]], *, max_tokens: int, until: list[str]) -> list[str]:
        """Return greedy answers, without special tokens; what follows one of ``until`` may still be there.

        Args:
            contexts: token ids, the longest first.
            max_tokens: of an answer.
            until: texts that end an answer.
        """
        raise NotImplementedError

    def _score_unshared(self, requests: list[TokenRequest]) -> list[tuple[float, bool]]:
        """Score requests, each by a sequence of its own."""
        return self._loglikelihood_tokens(requests, disable_tqdm=True)

    def _check_finite(self, answers: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
        for loglikelihood, _ in answers:
            if not math.isfinite(loglikelihood):
                raise EvaluationError(
                    f"the {self._label} model gave the log-likelihood {loglikelihood}. {self._broken()}"
                )
        return answers

    def _check_fits(self, request: Instance, num_tokens: int) -> None:
        if num_tokens > self.longest_request:
            raise EvaluationError(
                f"task {request.task_name}, row {request.doc.get('row', request.doc_id)}: {num_tokens} tokens, but the "
                f"{self._label} model takes at most {self.longest_request}. Process the data with a smaller "
                "max_seq_len."
            )

    def _broken(self) -> str:
        return (
            f"Its weights ({self._source.name}) are broken or overflow its dtype; "
            "train again with a lower learning rate."
        )


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: of a text, and of a turn where the chat template has one.

    A base model's settings often name the end of a text only. Tuned on conversations it ends its answers with the
    token that ends a turn, and would go on to speak for the user.
    """
    ends = {tokenizer.eos_token_id}
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"}]
    if tokenizer.chat_template:
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except jinja2.TemplateError:
            # A template that does not take this conversation names no end; the text's is left.
            return sorted(ends)
        behind = tokenizer.encode(text.rpartition("reply")[2], add_special_tokens=False)
        ends |= set(behind[:1]) & _special_ids(tokenizer)
    return sorted(ends)


def special_token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Return the ids of those of ``texts`` that are one special token: decoded answers do not show them."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return sorted({ids[0] for ids in encoded if len(ids) == 1} & _special_ids(tokenizer))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def request_length(request: Instance) -> int:
    """Return a measure of how long a request is: characters of its texts, tokens of its ids."""
    return sum(len(part) for part in _sized(request.args))


def _sized(arguments: Sequence[Any]) -> list[Any]:
    return [part for part in arguments if isinstance(part, str | list | tuple)]
