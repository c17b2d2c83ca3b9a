"""Rows to token ids and labels, in batches, through the fast tokenizer that the model ships.

Text is tokenized once, whole, and labels follow from where each token lies in it: a token is trained when it covers a
trained character. So the ids are exactly those that the template's text has at inference. Rows that spell out special
tokens are the exception: :mod:`osft.data.processing.control_text` keeps what they spell out as text.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from osft.data.increments.seen_rows import split_hashes
from osft.data.processing.byte_tokens import find_spellings
from osft.data.processing.control_text import ControlText, free_plane
from osft.data.processing.rendering import Conversation, ConversationRenderer, RenderedRow
from osft.data.validation.rows import IGNORED_LABEL
from osft.errors import ConfigError, DataError, MissingPathError

TokenArray = npt.NDArray[np.int32]
TokenRange = tuple[int, int]
TokensWithRanges = tuple[Sequence[int] | npt.NDArray[np.int64], list[TokenRange]]
"""The ids of a row, and its trained tokens: index of the first, and of the one behind the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRow:
    """One checked row of the source."""

    line: int
    """Line of the source, from 1."""

    fields: dict[str, Any]
    key: int
    """Hash of what is trained, 64 bits; it decides the row's side of the split."""

    hash: bytes
    """By which later runs know the row (:mod:`osft.data.increments.row_hash`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedBatch:
    """Rows as tokens, one behind the other, and what the report counts of them."""

    lines: npt.NDArray[np.int64]
    """``[rows]``; lines of the source, from 1."""

    keys: npt.NDArray[np.uint64]
    """``[rows]``; see :attr:`ParsedRow.key`."""

    hashes: npt.NDArray[np.uint64]
    """``[rows, 2]``; both parts of :attr:`ParsedRow.hash`."""

    lengths: npt.NDArray[np.int64]
    """``[rows]``; tokens of each row."""

    input_ids: TokenArray
    """``[tokens]``; the sum of :attr:`lengths`."""

    labels: TokenArray
    """``[tokens]``; an id where the loss counts, -100 elsewhere."""

    messages_not_rendered: int = 0
    reasoning_not_rendered: int = 0
    rows_with_control_text: int = 0
    """Rows in which a text spells out one of the tokenizer's special tokens."""


class RowEncoder(Protocol):
    """Turns rows of one data format into tokens."""

    def encode(self, rows: Sequence[ParsedRow]) -> EncodedBatch:
        """Return ``rows`` as tokens, in their order."""


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model, ready to encode without truncation and padding.

    Args:
        model: a folder or a Hugging Face id. Code that comes with the model is never run.

    Raises:
        MissingPathError: if there is no tokenizer in the folder or under the id.
        ConfigError: if the tokenizer is not a fast one, whose tokens know their place in the text.
    """
    # Imported here, because it brings torch, which the processes that only encode need not load.
    from transformers import AutoTokenizer

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
        self._control_text = ControlText(tokenizer)
        self._renderer = ConversationRenderer(tokenizer, self._control_text)
        self._backend = tokenizer.backend_tokenizer
        self._spellings = find_spellings(tokenizer)
        self._unmask_messages = unmask_messages

    def encode(self, rows: Sequence[ParsedRow]) -> EncodedBatch:
        """Render and tokenize ``rows``.

        Raises:
            DataError: naming the line, if the template cannot render a row or nothing of it is trained.
        """
        rendered = self._renderer.render([self._conversation(row) for row in rows])
        encoded = self._encode(rows, rendered)
        lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
        # The empty one is there for a batch without rows.
        input_ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in encoded)]).astype(np.int32)
        return EncodedBatch(
            lines=np.array([row.line for row in rows], dtype=np.int64),
            keys=np.array([row.key for row in rows], dtype=np.uint64),
            hashes=np.stack(split_hashes(b"".join(row.hash for row in rows)), axis=1),
            lengths=lengths,
            input_ids=input_ids,
            labels=_label(rows, [ranges for _, ranges in encoded], lengths, input_ids),
            messages_not_rendered=sum(row.messages_not_rendered for row in rendered),
            reasoning_not_rendered=sum(row.reasoning_not_rendered for row in rendered),
            rows_with_control_text=sum(row.plane is not None for row in rendered),
        )

    def _conversation(self, row: ParsedRow) -> Conversation:
        unmask = self._unmask_messages or row.fields.get("unmask", False)
        return Conversation(place=f"line {row.line}", messages=row.fields["messages"], unmask=unmask)

    def _encode(self, rows: Sequence[ParsedRow], rendered: Sequence[RenderedRow]) -> list[TokensWithRanges]:
        """Return the ids of each row, and which of its tokens are trained."""
        plain = iter(self._encode_plain([text for text in rendered if text.plane is None]))
        encoded = []
        for row, text in zip(rows, rendered, strict=True):
            if text.plane is None:
                encoded.append(next(plain))
            else:
                ids, encoding = _encode_control_text(self._control_text, row, text.text, text.plane)
                encoded.append((ids, _token_ranges(encoding, text.spans)))
        return encoded

    def _encode_plain(self, rendered: Sequence[RenderedRow]) -> list[TokensWithRanges]:
        texts = [row.text for row in rendered]
        if self._spellings is None:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            pairs = zip(encodings, rendered, strict=True)
            return [(encoding.ids, _token_ranges(encoding, row.spans)) for encoding, row in pairs]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        found = self._spellings.find_ranges(rows, texts, [row.spans for row in rendered])
        return [
            (ids, _token_ranges(self._backend.encode(row.text, add_special_tokens=False), row.spans))
            if ranges is None
            else (ids, ranges)
            for (ids, ranges), row in zip(found, rendered, strict=True)
        ]


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
        self._control_text = ControlText(tokenizer)
        self._eos_token_id = tokenizer.eos_token_id
        self._column = column

    def encode(self, rows: Sequence[ParsedRow]) -> EncodedBatch:
        """Tokenize ``rows``; every token is trained.

        Raises:
            DataError: naming the line, if special tokens that a document spells out cannot be kept as text.
        """
        texts = [row.fields[self._column] for row in rows]
        is_typed = [self._control_text.occurs_in(text) for text in texts]
        # The fast form leaves out the offsets, which documents do not need.
        plain = iter(
            self._backend.encode_batch_fast(
                [text for text, typed in zip(texts, is_typed, strict=True) if not typed], add_special_tokens=False
            )
        )
        ids = []
        for row, text, typed in zip(rows, texts, is_typed, strict=True):
            own_ids = _encode_control_text(self._control_text, row, text)[0] if typed else next(plain).ids
            ids.append([*own_ids, self._eos_token_id])
        lengths = np.array([len(row_ids) for row_ids in ids], dtype=np.int64)
        input_ids = _concatenate(ids, lengths)
        return EncodedBatch(
            lines=np.array([row.line for row in rows], dtype=np.int64),
            keys=np.array([row.key for row in rows], dtype=np.uint64),
            hashes=np.stack(split_hashes(b"".join(row.hash for row in rows)), axis=1),
            lengths=lengths,
            input_ids=input_ids,
            labels=input_ids,
            rows_with_control_text=sum(is_typed),
        )


class PassThroughEncoder:
    """Takes rows that are tokenized already, after a look at their ids."""

    def __init__(self, vocab_size: int) -> None:
        """Remember how many ids there are."""
        self._vocab_size = vocab_size

    def encode(self, rows: Sequence[ParsedRow]) -> EncodedBatch:
        """Return ``rows`` as arrays.

        Raises:
            DataError: naming line and position, if an id is not in the vocabulary.
        """
        lengths = np.array([len(row.fields["input_ids"]) for row in rows], dtype=np.int64)
        input_ids, labels = (
            _concatenate([row.fields[column] for row in rows], lengths) for column in ("input_ids", "labels")
        )
        self._check(rows, lengths, "input_ids", input_ids)
        self._check(rows, lengths, "labels", labels)
        return EncodedBatch(
            lines=np.array([row.line for row in rows], dtype=np.int64),
            keys=np.array([row.key for row in rows], dtype=np.uint64),
            hashes=np.stack(split_hashes(b"".join(row.hash for row in rows)), axis=1),
            lengths=lengths,
            input_ids=input_ids,
            labels=labels,
        )

    def _check(self, rows: Sequence[ParsedRow], lengths: npt.NDArray[np.int64], column: str, ids: TokenArray) -> None:
        wrong = np.flatnonzero(ids >= self._vocab_size)
        if not len(wrong):
            return
        ends = lengths.cumsum()
        row = int(np.searchsorted(ends, wrong[0], side="right"))
        place = wrong[0] - (ends[row] - lengths[row])
        raise DataError(
            f"line {rows[row].line}: {column}[{place}] is {ids[wrong[0]]}, but the tokenizer has {self._vocab_size} "
            "ids. Tokenize the data with the tokenizer of the model to train."
        )


def _encode_control_text(
    control_text: ControlText, row: ParsedRow, text: str, plane: int | None = None
) -> tuple[list[int], Encoding]:
    """Encode a row that spells out special tokens; without a plane all of ``text`` is content.

    Raises:
        DataError: naming the line, if they cannot be kept as text.
    """
    try:
        return control_text.encode(text, free_plane([text]) if plane is None else plane)
    except DataError as error:
        raise DataError(f"line {row.line}: {error}, or remove the row.") from error


def _concatenate(rows: Sequence[Sequence[int]], lengths: npt.NDArray[np.int64]) -> TokenArray:
    """Return the ids of all rows, one behind the other."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))


def _label(
    rows: Sequence[ParsedRow],
    trained: Sequence[Sequence[TokenRange]],
    lengths: npt.NDArray[np.int64],
    input_ids: TokenArray,
) -> TokenArray:
    """Return the labels of a batch: the id of each token in a trained range, -100 for the others.

    Raises:
        DataError: naming the line, if nothing of a row is trained.
    """
    labels = np.full_like(input_ids, IGNORED_LABEL)
    row_start = 0
    for row, ranges, length in zip(rows, trained, lengths.tolist(), strict=True):
        trained_tokens = 0
        for first, last in ranges:
            labels[row_start + first : row_start + last] = input_ids[row_start + first : row_start + last]
            # Nothing precedes a row's first token, so nothing predicts it.
            trained_tokens += max(0, last - max(first, 1))
        if not trained_tokens:
            raise DataError(f"line {row.line}: the chat template renders nothing that is trained. Remove the row.")
        row_start += length
    return labels


def _token_ranges(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> list[TokenRange]:
    """Return, for each span of characters, the first token that covers one of them and the one behind the last.

    Byte-pair vocabularies have tokens of a full stop and a line break: the one that ends a turn may reach beyond it.
    """
    # One by one: the list of all offsets would take longer to make than all else that labels need.
    chars: Any = encoding.token_to_chars
    tokens = range(len(encoding))
    ranges = []
    for start, end in spans:
        first = bisect_right(tokens, start, key=lambda token: chars(token)[1])
        ranges.append((first, bisect_left(tokens, end, lo=first, key=lambda token: chars(token)[0])))
    return ranges
