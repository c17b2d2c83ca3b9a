"""Rows to token ids and labels, in batches, through the fast tokenizer that the model ships.

Text is tokenized once, whole, and labels follow from the character offsets of the tokens: a token is trained when it
covers a trained character. So the ids are exactly those that the template's text has at inference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from osft.data.rendering import ConversationRenderer, RenderedRow
from osft.data.rows import IGNORED_LABEL
from osft.errors import ConfigError, DataError, MissingPathError

TokenArray = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRow:
    """One checked row of the source."""

    line: int
    """Line of the source, from 1."""

    fields: dict[str, Any]
    key: int
    """Hash of what is trained, 64 bits; it decides the row's side of the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRow:
    """One row as tokens."""

    line: int
    key: int
    input_ids: TokenArray
    """``[tokens]``."""

    labels: TokenArray
    """``[tokens]``; an id where the loss counts, -100 elsewhere."""

    messages_not_rendered: int = 0
    reasoning_not_rendered: int = 0
    has_control_text: bool = False
    """A message spells out one of the tokenizer's special tokens, which is then encoded as that token."""


class RowEncoder(Protocol):
    """Turns rows of one data format into tokens."""

    def encode(self, rows: Sequence[ParsedRow]) -> list[EncodedRow]:
        """Return one encoded row for each of ``rows``, in their order."""


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model, ready to encode without truncation and padding.

    Args:
        model: a folder or a Hugging Face id. Code that comes with the model is never run.

    Raises:
        MissingPathError: if there is no tokenizer in the folder or under the id.
        ConfigError: if the tokenizer is not a fast one, whose tokens know their place in the text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingPathError(
            f"model '{model}': no tokenizer could be loaded ({reason}). Give a folder with tokenizer.json, or a "
            "Hugging Face id that can be reached."
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model '{model}': its tokenizer {type(tokenizer).__name__} is not a fast one. "
            "Convert it to tokenizer.json."
        )
    # Some models save their tokenizer with truncation or padding switched on.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


class ConversationEncoder:
    """Encodes rows in the messages format."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, unmask_messages: bool) -> None:
        """Read the chat template.

        Args:
            tokenizer: from :func:`load_tokenizer`.
            unmask_messages: train everything but system messages in every row.
        """
        self._renderer = ConversationRenderer(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._unmask_messages = unmask_messages
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control_text = re.compile("|".join(map(re.escape, special))) if special else None

    def encode(self, rows: Sequence[ParsedRow]) -> list[EncodedRow]:
        """Render and tokenize ``rows``.

        Raises:
            DataError: naming the line, if the template cannot render a row or nothing of it is trained.
        """
        rendered = [self._render(row) for row in rows]
        encodings = self._backend.encode_batch([row.text for row in rendered], add_special_tokens=False)
        return [self._label(row, text, encoding) for row, text, encoding in zip(rows, rendered, encodings, strict=True)]

    def _render(self, row: ParsedRow) -> RenderedRow:
        unmask = self._unmask_messages or row.fields.get("unmask", False)
        try:
            return self._renderer.render(row.fields["messages"], unmask=unmask)
        except DataError as error:
            raise DataError(f"line {row.line}: {error}, or remove the row.") from error

    def _label(self, row: ParsedRow, rendered: RenderedRow, encoding: Encoding) -> EncodedRow:
        input_ids = np.array(encoding.ids, dtype=np.int32)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        for start, end in rendered.spans:
            trained = slice(*_token_range(encoding, start, end, len(rendered.text)))
            labels[trained] = input_ids[trained]
        if (labels == IGNORED_LABEL).all():
            raise DataError(f"line {row.line}: the chat template renders nothing that is trained. Remove the row.")
        return EncodedRow(
            line=row.line,
            key=row.key,
            input_ids=input_ids,
            labels=labels,
            messages_not_rendered=rendered.messages_not_rendered,
            reasoning_not_rendered=rendered.reasoning_not_rendered,
            has_control_text=self._has_control_text(row.fields["messages"]),
        )

    def _has_control_text(self, messages: Sequence[dict[str, str]]) -> bool:
        if self._control_text is None:
            return False
        return any(self._control_text.search(message["content"]) for message in messages)


class DocumentEncoder:
    """Encodes rows that hold a document, each closed by the EOS token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, column: str) -> None:
        """Remember the column of the text.

        Raises:
            ConfigError: if the tokenizer has no EOS token to put between documents.
        """
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"model '{tokenizer.name_or_path}': its tokenizer has no EOS token to part documents. Set one."
            )
        self._backend = tokenizer.backend_tokenizer
        self._eos_token_id = tokenizer.eos_token_id
        self._column = column

    def encode(self, rows: Sequence[ParsedRow]) -> list[EncodedRow]:
        """Tokenize ``rows``; every token is trained."""
        texts = [row.fields[self._column] for row in rows]
        encoded = []
        # The fast form leaves out the offsets, which documents do not need.
        for row, encoding in zip(rows, self._backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            input_ids = np.array([*encoding.ids, self._eos_token_id], dtype=np.int32)
            encoded.append(EncodedRow(line=row.line, key=row.key, input_ids=input_ids, labels=input_ids))
        return encoded


class PassThroughEncoder:
    """Takes rows that are tokenized already, after a look at their ids."""

    def __init__(self, vocab_size: int) -> None:
        """Remember how many ids there are."""
        self._vocab_size = vocab_size

    def encode(self, rows: Sequence[ParsedRow]) -> list[EncodedRow]:
        """Return ``rows`` as arrays.

        Raises:
            DataError: naming line and position, if an id is not in the vocabulary.
        """
        return [
            EncodedRow(
                line=row.line, key=row.key, input_ids=self._ids(row, "input_ids"), labels=self._ids(row, "labels")
            )
            for row in rows
        ]

    def _ids(self, row: ParsedRow, column: str) -> TokenArray:
        ids = np.array(row.fields[column], dtype=np.int32)
        wrong = np.flatnonzero(ids >= self._vocab_size)
        if len(wrong):
            raise DataError(
                f"line {row.line}: {column}[{wrong[0]}] is {ids[wrong[0]]}, but the tokenizer has {self._vocab_size} "
                "ids. Tokenize the data with the tokenizer of the model to train."
            )
        return ids


def _token_range(encoding: Encoding, start: int, end: int, length: int) -> tuple[int, int]:
    """Return the tokens that cover any of the characters ``start`` to ``end`` of a text of ``length``."""
    first, last = _token_at(encoding, start, length), _token_at(encoding, end, length)
    # Byte-pair vocabularies have tokens such as '.\n': the one that ends a turn may reach beyond it.
    characters = encoding.token_to_chars(last) if last < len(encoding) else None
    return first, last + 1 if characters is not None and characters[0] < end else last


def _token_at(encoding: Encoding, character: int, length: int) -> int:
    """Return the first token at or behind ``character``: spaces may belong to none."""
    for position in range(character, length):
        token = encoding.char_to_token(position)
        if token is not None:
            return token
    return len(encoding)
