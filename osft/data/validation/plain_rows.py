"""The fast answer to "is this row right?", for the many that are.

Each function here says yes only where :mod:`osft.data.validation.rows` finds no problem, and counts the same facts;
where it does not say yes, that module has the word. It is the difference between some 6 and some 20 microseconds a
row, so these are plain loops that make no objects of their own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from osft.data.validation.findings import cut
from osft.data.validation.json_lines import MAX_NESTING, measure
from osft.data.validation.rows import (
    DOCUMENT,
    IGNORED_LABEL,
    MAX_TOKEN_ID,
    MAX_TURNS,
    MESSAGE_KEYS,
    PROCESSED_KEYS,
    ROW_KEYS,
    RowFacts,
    length_class,
)

PlainCheck = Callable[[dict[str, Any], RowFacts], int]
"""Returns how many keys the row has on all its levels, or a negative number if the row needs a closer look."""

# Added to any number of keys it stays negative.
NOT_PLAIN = -(1 << 60)
_SYSTEM, _USER, _TRAINED = 0, 1, 2
_KINDS = {"system": _SYSTEM, "user": _USER, "assistant": _TRAINED, "pretraining": _TRAINED}
# Levels of a row that may lie above a value in a message.
_LEVELS_ABOVE = 3


def plain_check(output_format: str, document_column: str, *, unmask_messages: bool) -> PlainCheck:
    """Return the function for rows of messages, of documents or of token ids.

    The functions leave it to the caller to keep rows with U+0000 from them, and to take back the facts of a row that
    is not plain.
    """
    if output_format == "messages":
        return partial(count_plain_messages_row, unmask_messages=unmask_messages)
    if output_format == "processed":
        return count_plain_processed_row
    return partial(count_plain_document_row, column=document_column)


def count_plain_messages_row(row: dict[str, Any], facts: RowFacts, *, unmask_messages: bool = False) -> int:
    """Return the number of keys of a plain row in the messages format."""
    messages, unmask = row.get("messages"), row.get("unmask")
    if type(messages) is not list or not 0 < len(messages) <= MAX_TURNS:
        return NOT_PLAIN
    # Not "in (None, True, False)": that holds for 1 and 0 too.
    if unmask is not None and type(unmask) is not bool:
        return NOT_PLAIN
    facts.turns.append(len(messages))
    keys = 1 if len(row) == 1 else _count_keys(row, ROW_KEYS, facts, "")
    return keys + _count_plain_messages(messages, facts, unmask=unmask or unmask_messages)


def count_plain_processed_row(row: dict[str, Any], facts: RowFacts) -> int:
    """Return the number of keys of a plain row of token ids and labels."""
    input_ids, labels = row.get("input_ids"), row.get("labels")
    if type(input_ids) is not list or type(labels) is not list or not len(input_ids) == len(labels) > 1:
        return NOT_PLAIN
    # A JSON true is an int to Python, so the types are compared.
    if set(map(type, input_ids)) != {int} or set(map(type, labels)) != {int}:
        return NOT_PLAIN
    distinct = set(labels)
    distinct.discard(IGNORED_LABEL)
    if not distinct or min(distinct) < 0 or min(input_ids) < 0 or max(max(distinct), max(input_ids)) > MAX_TOKEN_ID:
        return NOT_PLAIN
    ignored = labels.count(IGNORED_LABEL) - (labels[0] == IGNORED_LABEL)
    return _count_keys(row, PROCESSED_KEYS, facts, "") if ignored < len(labels) - 1 else NOT_PLAIN


def count_plain_document_row(row: dict[str, Any], facts: RowFacts, column: str) -> int:
    """Return the number of keys of a plain row whose ``column`` holds a document's text."""
    text = row.get(column)
    if type(text) is not str or not text or text.isspace():
        return NOT_PLAIN
    facts.texts.append((DOCUMENT, length_class(len(text))))
    return _count_keys(row, frozenset({column}), facts, "")


def _count_plain_messages(messages: list[Any], facts: RowFacts, *, unmask: bool) -> int:
    """Return the number of keys of the messages if each is plain, and their roles are in order."""
    keys, kinds, texts = 0, 0, facts.texts
    for message in messages:
        try:
            role, content = message["role"], message["content"]
            kind = _KINDS[role]
        except (KeyError, TypeError):
            return NOT_PLAIN
        if type(content) is not str or not content or content.isspace() or (kind == _SYSTEM and keys):
            return NOT_PLAIN
        # length_class, without the call.
        texts.append((role, (len(content) - 1).bit_length()))
        if len(message) == 2:
            keys += 2
        else:
            keys += _count_keys_of_message(message, facts)
        kinds |= kind
    return keys if kinds >= _TRAINED or (unmask and kinds) else NOT_PLAIN


def _count_keys_of_message(message: dict[str, Any], facts: RowFacts) -> int:
    """Return the number of keys of a message that has more than a role and a content."""
    reasoning = message.get("reasoning_content")
    if reasoning is not None and (type(reasoning) is not str or message["role"] != "assistant"):
        return NOT_PLAIN
    return _count_keys(message, MESSAGE_KEYS, facts, "messages[].")


def _count_keys(fields: Mapping[str, Any], known: frozenset[str], facts: RowFacts, prefix: str) -> int:
    """Return the number of keys of ``fields`` and of the values of those that are not ``known``; name these."""
    count = len(fields)
    for key, value in fields.items():
        if key in known:
            continue
        facts.extra_keys.append(prefix + cut(key))
        if type(value) in (dict, list):
            keys, depth = measure(value)
            count += keys if depth <= MAX_NESTING - _LEVELS_ABOVE else NOT_PLAIN
    return count
