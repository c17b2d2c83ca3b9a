"""The held-out rows of the new data, as a task that lm-eval runs like any other.

A row is one conversation, tokenized by ``osft.data.processing.process``: ``input_ids``, ``labels`` (-100 where a token
is not trained) and ``row``, its number in the source. Each trained turn (a run of labels other than -100) is
scored given all tokens before it. The token ids go to the model as they are: text decoded and encoded again
may tokenize differently, and would then measure something the model never saw.

Scores of a document (a row):

- ``acc``: 1 if in every trained turn each token is the model's most likely one, which is exactly when greedy
  decoding answers every turn of the row word for word; else 0. One score a row and not a turn, because the
  turns of a conversation are not independent, and the interval counts rows.
- ``token_loglikelihood``: mean log-likelihood a trained token, in nats.
- ``perplexity`` of the task: exp of minus the mean log-likelihood over all trained tokens.

Rows of plain text (trained from their first token on: pretraining blocks) have no answer to be right or wrong
about; a holdout of only such rows has no ``acc`` and is compared by ``token_loglikelihood``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, weighted_mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig

from osft.data.validation.rows import IGNORED_LABEL
from osft.errors import DataError, EvaluationError, MissingPathError
from osft.evaluation.config import HOLDOUT_TASK

HOLDOUT_NAME = "holdout.parquet"
TOKEN_REQUEST = "loglikelihood_of_tokens"  # noqa: S105  (the name of a method, no secret)
"""The method of the language model that lm-eval calls with this task's requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldoutRow:
    """One conversation of the held-out data."""

    row: int
    """Line of the row in the source data, from 1."""

    input_ids: tuple[int, ...]
    turns: tuple[tuple[int, int], ...]
    """Trained turns, as half-open ranges of ``input_ids``; none begins at 0, where nothing comes before."""

    is_plain_text: bool
    """Whether the row is trained from its first token on."""


def read_holdout(path: Path, *, vocabulary_size: int) -> tuple[HoldoutRow, ...]:
    """Read every row of the held-out data.

    Args:
        path: ``holdout.parquet`` or the folder that holds it.
        vocabulary_size: ids must be below it.

    Raises:
        MissingPathError: if there is no such file.
        DataError: if it has no row, lacks a column, or a row's ids and labels do not fit.
    """
    file = path / HOLDOUT_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingPathError(f"{file}: the held-out rows are not there. Run the processing step, or give no holdout.")
    try:
        table = pq.read_table(file, columns=["input_ids", "labels", "row"])
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{file}: no parquet file with columns input_ids, labels, row ({error}).") from error
    if table.num_rows == 0:
        raise DataError(f"{file}: there are no held-out rows. Raise the held-out fraction, or give no holdout.")
    return tuple(_check_row(fields, file=file, vocabulary_size=vocabulary_size) for fields in table.to_pylist())


def trained_turns(labels: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the runs of labels other than -100 as half-open ranges.

    A run at the very start begins at 1: nothing comes before the first token, so it is not predicted (the
    training loss skips it as well). A run of that token alone is no turn.
    """
    trained = [label != IGNORED_LABEL for label in labels]
    starts = [i for i, is_trained in enumerate(trained) if is_trained and (i == 0 or not trained[i - 1])]
    ends = [
        i + 1 for i, is_trained in enumerate(trained) if is_trained and (i + 1 == len(trained) or not trained[i + 1])
    ]
    return tuple((max(start, 1), end) for start, end in zip(starts, ends, strict=True) if end > max(start, 1))


def _check_row(fields: dict[str, Any], *, file: Path, vocabulary_size: int) -> HoldoutRow:
    place = f"{file}, row {fields['row']}"
    ids, labels = fields["input_ids"] or [], fields["labels"] or []
    if len(ids) != len(labels):
        raise DataError(f"{place}: {len(ids)} input_ids and {len(labels)} labels. Process the data again.")
    if wrong := [token for token in ids if not 0 <= token < vocabulary_size]:
        raise DataError(
            f"{place}: token id {wrong[0]} is not below the vocabulary size {vocabulary_size}. "
            "Process the data with the tokenizer of the base model."
        )
    turns = trained_turns(labels)
    if not turns:
        raise DataError(f"{place}: no trained token (a label other than {IGNORED_LABEL}). Process the data again.")
    return HoldoutRow(row=fields["row"], input_ids=tuple(ids), turns=turns, is_plain_text=labels[0] != IGNORED_LABEL)


class HoldoutTask(Task):
    """The held-out rows as an lm-eval task; its requests need a model with ``loglikelihood_of_tokens``."""

    VERSION = 1
    OUTPUT_TYPE = "loglikelihood"

    def __init__(self, rows: Sequence[HoldoutRow], *, decode: Callable[[list[int]], str]) -> None:
        """Make the task.

        Args:
            rows: at least one.
            decode: the tokenizer's decoding, special tokens kept; only for people to read.
        """
        self._rows = [_document(row, decode) for row in rows]
        self._has_answers = not all(row.is_plain_text for row in rows)
        super().__init__()
        # num_fewshot 0 in a task's own configuration is what lm-eval never overrides: a row is whole as it is.
        self._config = TaskConfig(task=HOLDOUT_TASK, num_fewshot=0, output_type="loglikelihood")

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
        """Return the documents, one a row."""
        return self._rows

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """Return what comes before the first trained turn."""
        return doc["turns"][0]["context"]

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """Return the trained turns, one below the other."""
        return "\n".join(turn["answer"] for turn in doc["turns"])

    def fewshot_context(self, doc: dict[str, Any], *_: Any, **__: Any) -> str:
        """Return the row's own context: chat template and examples are in the tokens already."""
        return self.doc_to_text(doc)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Return one request a trained turn: (context, answer, context ids, answer ids)."""
        del ctx  # each turn has a context of its own
        return [
            Instance(
                request_type=TOKEN_REQUEST,
                doc=doc,
                arguments=(turn["context"], turn["answer"], turn["context_ids"], turn["answer_ids"]),
                idx=index,
                metadata=kwargs["metadata"],
            )
            for index, turn in enumerate(doc["turns"])
        ]

    def process_results(self, doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
        """Return the row's scores from ``(log-likelihood, all tokens are the most likely)`` of its turns."""
        loglikelihood = math.fsum(value for value, _ in results)
        num_tokens = sum(len(turn["answer_ids"]) for turn in doc["turns"])
        scores: dict[str, Any] = {"acc": float(all(is_greedy for _, is_greedy in results))} if self._has_answers else {}
        return scores | {
            "token_loglikelihood": loglikelihood / num_tokens,
            "perplexity": (loglikelihood, num_tokens),
        }

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """Return how each score is joined over the rows."""
        return {"acc": mean, "token_loglikelihood": mean, "perplexity": token_perplexity}

    def higher_is_better(self) -> dict[str, bool]:
        """Return each score's direction."""
        return {"acc": True, "token_loglikelihood": True, "perplexity": False}


def token_perplexity(items: Sequence[tuple[float, int]]) -> float:
    """Return ``exp(-sum(log-likelihoods) / sum(tokens))``.

    Raises:
        EvaluationError: if it is beyond the range of a float: the model's weights are broken.
    """
    try:
        return math.exp(-weighted_mean(items))
    except OverflowError as error:
        raise EvaluationError(
            f"task {HOLDOUT_TASK}: the perplexity overflows (mean log-likelihood {weighted_mean(items):.4g} a token). "
            "The model's weights are broken."
        ) from error


def _document(row: HoldoutRow, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """Return a row as lm-eval's document: JSON, with the text beside the ids."""
    ids = list(row.input_ids)
    turns = [
        {
            "context": decode(ids[:start]),
            "answer": decode(ids[start:end]),
            "context_ids": ids[:start],
            "answer_ids": ids[start:end],
        }
        for start, end in row.turns
    ]
    return {"row": row.row, "turns": turns}
