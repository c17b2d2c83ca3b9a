"""The held-out rows of the new data, as a task that lm-eval runs like any other.

Each trained turn of a row (:mod:`osft.evaluation.holdout.rows`) is scored given all tokens before it. The token ids
go to the model as they are: text decoded and encoded again may tokenize differently, and would then measure something
the model never saw.

The documents are the rows in the order of their hashes. The file has the order of the source, which may be sorted by
topic; in this order the first documents, which are all that a limit leaves, are a fair sample, and adding rows to the
data does not move the others about.

Scores of a document (a row):

- ``acc``: 1 if in every trained turn each token is the model's most likely one, which is exactly when greedy
  decoding answers every turn of the row word for word; else 0. One score a row and not a turn, because the
  turns of a conversation are not independent, and the interval counts rows.
- ``perplexity`` of the task: exp of minus the mean log-likelihood over all trained tokens. A document has the sum of
  its log-likelihoods and the number of its tokens.
- ``token_loglikelihood``: mean log-likelihood a trained token, in nats; of the task, the mean over its rows.
- ``answer_exact_match`` and ``answer_f1``: the model writes the last turn itself, and its text is compared as in
  SQuAD (:func:`answer_f1`). Only where that turn is short and closed by an end-of-turn token, and to bound the time
  only for the first ``GENERATED_ROWS`` such documents; lm-eval takes the mean over the documents that have them.
  A row whose ``acc`` is 1 matches exactly; the reverse need not hold, since spelling variants count as equal here.

Which score counts depends on the rows alone, so that it is the same for every model. ``acc`` counts where at least
half of the rows have only short turns, of at most ``SHORT_ANSWER_TOKENS``. Else ``perplexity`` counts and no row has
an ``acc``: hardly any model says a hundred tokens word for word, and a score that is 0 before and after shows no gain.
All rows have ``acc`` or none does, since models are compared row by row; a few long rows among short ones are hard.

Rows of plain text (trained from their first token on: pretraining blocks) have no answer to be right or wrong about:
they count as long, and write none.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, weighted_mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from transformers import PreTrainedTokenizerBase

from osft.content_cache import content_key
from osft.errors import EvaluationError
from osft.evaluation.config import HOLDOUT_TASK
from osft.evaluation.holdout.rows import HoldoutRow, Tokens
from osft.evaluation.holdout.text_scores import answer_f1, normalize_answer

TOKEN_REQUEST = "loglikelihood_of_tokens"  # noqa: S105  (the name of a method, no secret)
GENERATION_REQUEST = "generate_from_tokens"
"""The methods of the language model that lm-eval calls with this task's requests."""

SHORT_ANSWER_TOKENS = 64
"""Longest turn, in tokens, that can fairly be asked for word for word, and that the model is asked to write.
It may write as many, so that rambling shows."""

GENERATED_ROWS = 256
"""Documents whose answer is written: enough for a standard error of three points, in minutes at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortAnswer:
    """The last turn of a row, as a text that a model can be asked to write."""

    text: str
    """The turn without special tokens."""

    end_of_turn: str
    """The token that closes it, as text."""


class HoldoutTask(Task):
    """The held-out rows as an lm-eval task, for a model with the two methods that its requests name."""

    VERSION = 3
    OUTPUT_TYPE = "loglikelihood"

    def __init__(
        self, rows: Sequence[HoldoutRow], tokenizer: PreTrainedTokenizerBase, *, name: str = HOLDOUT_TASK
    ) -> None:
        """Make the task.

        Args:
            rows: at least one.
            tokenizer: the base model's; for people to read, and to compare written answers.
            name: what the task is called; it changes no prompt and no score.
        """
        self._tokenizer = tokenizer
        added = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
        self._special_ids = np.array([*tokenizer.all_special_ids, *added])
        in_order = sorted(((row.sha256, row) for row in rows), key=lambda pair: pair[0])
        self._rows = dict(in_order)
        self._answers: dict[str, ShortAnswer] = {}
        self._documents = [self._document(sha256, row) for sha256, row in in_order]
        self._has_acc = 2 * sum(map(_is_short, rows)) >= len(rows)
        super().__init__()
        # num_fewshot 0 in a task's own configuration is what lm-eval never overrides: a row is whole as it is.
        self._config = TaskConfig(task=name, num_fewshot=0, output_type="loglikelihood")

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what is asked and how answers are scored, as hexadecimal text."""
        answers = [[sha256, answer.text, answer.end_of_turn] for sha256, answer in self._answers.items()]
        return content_key(
            {
                "version": self.VERSION,
                "max_gen_toks": SHORT_ANSWER_TOKENS,
                "documents": self._documents,
                "answers": answers,
            }
        )

    def download(self, *_: Any, **__: Any) -> None:
        """Do nothing: the rows are there already."""

    def has_training_docs(self) -> bool:
        """Return False."""
        return False

    def has_validation_docs(self) -> bool:
        """Return False."""
        return False

    def has_test_docs(self) -> bool:
        """Return True."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """Return the documents, one a row: its number, its hash, and whether its answer is written.

        The tokens are not in them: lm-eval turns each document into indented JSON to hash it.
        """
        return self._documents

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """Return nothing: each turn's request has its own context."""
        del doc
        return ""

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """Return the trained turns, one below the other."""
        row = self._rows[doc["sha256"]]
        return "\n".join(self._decode(row.input_ids[start:end]) for start, end in row.turns)

    def fewshot_context(self, doc: dict[str, Any], *_: Any, **__: Any) -> str:
        """Return nothing: chat template and examples are in the tokens already."""
        return self.doc_to_text(doc)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Return one request a trained turn, and one to write the last turn where it is short.

        Args:
            doc: the document.
            ctx: not used; each turn has a context of its own.
            kwargs: lm-eval's ``metadata``.

        Returns:
            Requests ``(context, answer, context ids, answer ids)`` and ``("", context ids, settings)``. The texts are
            for people. Only the last turn has its context as text: it holds those of the turns before, and decoding
            each would take the square of their number.
        """
        del ctx
        row = self._rows[doc["sha256"]]
        ids = row.input_ids.tolist()
        requests: list[tuple[str, tuple[Any, ...]]] = [
            (
                TOKEN_REQUEST,
                (
                    self._decode(row.input_ids[:start]) if (start, end) == row.turns[-1] else "",
                    self._decode(row.input_ids[start:end]),
                    ids[:start],
                    ids[start:end],
                ),
            )
            for start, end in row.turns
        ]
        if doc["is_written"]:
            # The same for every row, because backends batch requests of equal settings.
            settings = {"max_gen_toks": SHORT_ANSWER_TOKENS, "until": [self._answers[doc["sha256"]].end_of_turn]}
            requests.append((GENERATION_REQUEST, ("", ids[: row.turns[-1][0]], settings)))
        return [
            Instance(request_type=name, doc=doc, arguments=arguments, idx=index, metadata=kwargs["metadata"])
            for index, (name, arguments) in enumerate(requests)
        ]

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Return the row's scores; which these are does not depend on what the model said.

        Perplexity comes first: the harness takes the first score where none is one that it prefers, as ``acc`` is.

        Args:
            doc: the document.
            results: ``(log-likelihood, all tokens are the most likely)`` of its turns, then the written text, if any.
        """
        row = self._rows[doc["sha256"]]
        turns = results[: len(row.turns)]
        loglikelihood = math.fsum(value for value, _ in turns)
        num_tokens = sum(end - start for start, end in row.turns)
        scores: dict[str, Any] = {
            "perplexity": (loglikelihood, num_tokens),
            "token_loglikelihood": loglikelihood / num_tokens,
        }
        if self._has_acc:
            scores["acc"] = float(all(is_greedy for _, is_greedy in turns))
        if doc["is_written"]:
            gold = self._answers[doc["sha256"]]
            written = results[-1].partition(gold.end_of_turn)[0]
            scores |= {
                "answer_exact_match": float(normalize_answer(written) == normalize_answer(gold.text)),
                "answer_f1": answer_f1(gold.text, written),
            }
        return scores

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """Return how each score is joined over the rows that have it."""
        means = dict.fromkeys(("acc", "token_loglikelihood", "answer_exact_match", "answer_f1"), mean)
        return means | {"perplexity": token_perplexity}

    def higher_is_better(self) -> dict[str, bool]:
        """Return each score's direction."""
        return {name: name != "perplexity" for name in self.aggregation()}

    def _document(self, sha256: str, row: HoldoutRow) -> dict[str, Any]:
        # Of equal rows one is written: their answers would be equal too.
        is_candidate = len(self._answers) < GENERATED_ROWS and sha256 not in self._answers
        answer = self._short_answer(row) if is_candidate else None
        if answer:
            self._answers[sha256] = answer
        return {"row": row.row, "sha256": sha256, "is_written": answer is not None}

    def _short_answer(self, row: HoldoutRow) -> ShortAnswer | None:
        """Return the last turn, if it is short and a special token, said once, closes it."""
        start, end = row.turns[-1]
        if row.is_plain_text or end - start > SHORT_ANSWER_TOKENS:
            return None
        turn = row.input_ids[start:end]
        special = np.flatnonzero(np.isin(turn, self._special_ids))
        closing = int(special[-1]) if len(special) else None
        if closing is None or turn[closing] in turn[:closing] or self._decode(turn[closing + 1 :]).strip():
            return None
        text = self._decode(turn[:closing], skip_special_tokens=True)
        return ShortAnswer(text=text, end_of_turn=self._decode(turn[closing : closing + 1]))

    def _decode(self, ids: Tokens, *, skip_special_tokens: bool = False) -> str:
        # An array, not a list: transformers would look at each of a list's elements, which takes as long again.
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def _is_short(row: HoldoutRow) -> bool:
    """Return whether every trained turn is an answer that a model may be expected to give word for word."""
    return not row.is_plain_text and all(end - start <= SHORT_ANSWER_TOKENS for start, end in row.turns)


def token_perplexity(items: Sequence[tuple[float, int]]) -> float:
    """Return ``exp(-sum(log-likelihoods) / sum(tokens))``.

    Raises:
        EvaluationError: if it is beyond the range of a float: the model's weights are broken.
    """
    try:
        return math.exp(-weighted_mean(items))
    except OverflowError as error:
        raise EvaluationError(
            f"held-out rows: the perplexity overflows (mean log-likelihood {weighted_mean(items):.4g} a token). "
            "The model's weights are broken."
        ) from error
