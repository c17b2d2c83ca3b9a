"""The hash of what is trained in a row, by which runs tell the rows that earlier ones had.

What counts is what is trained: roles, contents, reasoning and ``unmask`` of a conversation, the text of a document,
ids and labels of a row of tokens. An id, the order of keys, white space between them and the shape that a row was
converted from do not.

The hashes of a run are kept as long as its model's descendants are trained, so what is hashed here must stay as it is:
with another encoding every row would be new again.
"""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson

# With 128 bits, two different rows of a billion have equal hashes with a probability below 1 in 10**20.
HASH_BYTES = 16

RowHash = Callable[[dict[str, Any]], bytes]
"""Returns :data:`HASH_BYTES` bytes for a valid row."""

# No text of a valid row holds it, so texts joined with it cannot be mistaken for others.
_SEPARATOR = "\0"


def row_hash(output_format: str, document_column: str) -> RowHash:
    """Return the function for rows of messages, of documents or of token ids."""
    if output_format == "messages":
        return hash_messages_row
    if output_format == "processed":
        return hash_processed_row
    return partial(hash_document_row, column=document_column)


def hash_messages_row(row: dict[str, Any]) -> bytes:
    """Return the hash of a valid row in the messages format."""
    parts = ["unmask" if row.get("unmask") else ""]
    append = parts.append
    for message in row["messages"]:
        append(message["role"])
        append(message["content"])
        # Null stands for a reasoning that is not there, and an empty one is none either.
        if len(message) > 2 and (reasoning := message.get("reasoning_content")):
            # A message has its role before its content, and no role is empty.
            parts += ("", reasoning)
    return _digest(_SEPARATOR.join(parts).encode())


def hash_document_row(row: dict[str, Any], column: str) -> bytes:
    """Return the hash of a valid row whose ``column`` holds a document's text."""
    return _digest(f"document{_SEPARATOR}{row[column]}".encode())


def hash_processed_row(row: dict[str, Any]) -> bytes:
    """Return the hash of a valid row of token ids and labels."""
    return _digest(orjson.dumps([row["input_ids"], row["labels"]]))


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=HASH_BYTES).digest()
