"""The user's text as documents of token ids.

Plain text is parted at blank lines, JSON Lines give a document a row: ``text``, or ``messages`` through the model's
chat template. A document is tokenized as the tokenizer does by itself, so it begins with the token that a model's
texts begin with (Gemma and Llama are far off without it). The file is read only as far as :data:`MAX_PROBE_TOKENS`
tokens go: a whole corpus may be named.
"""

import codecs
import logging
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from transformers import PreTrainedTokenizerBase

from osft.data.processing.chat_template import TEMPLATE_ERRORS
from osft.errors import DataError, MissingPathError, one_line

logger = logging.getLogger(__name__)

MAX_PROBE_TOKENS = 65_536
"""Tokens that are measured, of all documents together; the rest of the file is left out."""

MAX_DOCUMENT_CHARACTERS = 64 * MAX_PROBE_TOKENS
"""No more of a document is looked at; tokens are much shorter than that in any language."""

TEXT_SUFFIXES = (".txt", ".md")
ROWS_SUFFIX = ".jsonl"

Line = tuple[int, str]
"""Its number, from 1, and its text."""

Documents = tuple[tuple[int, ...], ...]
"""Token ids of each document."""


def read_probe(path: Path, tokenizer: PreTrainedTokenizerBase) -> Documents:
    """Return the documents of ``path`` as token ids, at least two each and :data:`MAX_PROBE_TOKENS` in all.

    Args:
        path: ``.txt`` or ``.md``, where blank lines part the documents; or ``.jsonl``, where a row is an object with
            ``text`` or ``messages``.
        tokenizer: of the base model.

    Raises:
        MissingPathError: if there is no such file.
        DataError: if it is of another kind, not UTF-8, a row is no document, or no document has two tokens.
    """
    if not path.is_file():
        raise MissingPathError(f"{path}: the probe is not there. Give a text file (.txt, .md or .jsonl), or no probe.")
    if path.suffix not in (*TEXT_SUFFIXES, ROWS_SUFFIX):
        raise DataError(f"{path}: the probe's name ends in '{path.suffix}'. Give plain text (.txt, .md) or .jsonl.")
    if path.suffix == ROWS_SUFFIX:
        encoded = (_encode_row(line, f"{path}, line {number}", tokenizer) for number, line in _lines(path))
    else:
        encoded = (_encode(text, tokenizer) for text in _paragraphs(_lines(path)))
    documents = tuple(_first_tokens(encoded, path))
    if not documents:
        raise DataError(f"{path}: no document of the probe has two tokens, so nothing is predicted. Give more text.")
    return documents


def _lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file, each with its end, which is a line feed."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: the probe is not UTF-8 there. Save it as UTF-8.") from error
            yield number, line.replace("\r\n", "\n")


def _paragraphs(lines: Iterable[Line]) -> Iterator[str]:
    """Yield what stands between blank lines."""
    for is_text, paragraph in groupby(lines, key=lambda line: bool(line[1].strip())):
        if is_text:
            yield _join(line for _, line in paragraph)


def _join(lines: Iterable[str]) -> str:
    """Return the lines as one text, as far as a document is looked at."""
    taken: list[str] = []
    num_characters = 0
    for line in lines:
        taken.append(line)
        num_characters += len(line)
        if num_characters >= MAX_DOCUMENT_CHARACTERS:
            break
    return "".join(taken).rstrip()


def _first_tokens(encoded: Iterable[list[int]], path: Path) -> Iterator[tuple[int, ...]]:
    """Yield documents until the probe is full; the last one may be cut."""
    free_tokens = MAX_PROBE_TOKENS
    for ids in encoded:
        if len(ids) < 2:
            continue
        if free_tokens >= 2:
            yield tuple(ids[:free_tokens])
        if len(ids) > free_tokens:
            logger.info("%s: its first %d tokens are measured, the rest is left out", path, MAX_PROBE_TOKENS)
            return
        free_tokens -= len(ids)


def _encode_row(line: str, place: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a row; none of a blank line.

    Raises:
        DataError: if the row is no document.
    """
    if not line.strip():
        return []
    try:
        row: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: the row is not JSON ({error.msg}). Write one JSON object a line.") from error
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return _encode(row["text"], tokenizer)
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        return _encode(_render(row["messages"], place, tokenizer), tokenizer, is_rendered=True)
    raise DataError(f"{place}: the row has neither 'text', a string, nor 'messages', a list. Give it one of them.")


def _render(messages: list[Any], place: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise DataError(f"{place}: 'messages', but the base model has no chat template. Give the row a 'text'.")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TEMPLATE_ERRORS as error:
        raise DataError(
            f"{place}: the chat template refuses the messages ({one_line(error)}). Check their roles and contents."
        ) from error


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, is_rendered: bool = False) -> list[int]:
    """Return the tokens of ``text``; a chat template has written all special tokens already."""
    shortened = text[:MAX_DOCUMENT_CHARACTERS]
    return list(tokenizer(shortened, add_special_tokens=not is_rendered, verbose=False)["input_ids"])
