"""What one row must hold, for each data format, and the findings when it does not.

A finding's code is stable: scripts may match it. Its message is for people and never repeats the row's text beyond
a short name, because messages end up in logs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import orjson

from osft.errors import ConfigError

DataFormat = Literal["messages", "processed", "documents"]
ROLES = ("system", "user", "assistant", "pretraining")
MESSAGE_KEYS = frozenset({"role", "content", "reasoning_content"})
IGNORED_LABEL = -100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Token ids are stored in 32 bits.
MAX_TOKEN_ID = 2**31 - 1
# A hostile row must not fill a log line.
MAX_NAME_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with one row."""

    line: int
    """Line of the file, from 1."""

    code: str
    """Stable name of the problem, such as ``role-unknown``."""

    path: str
    """Where in the row, such as ``messages[2].content``; empty for the row as a whole."""

    message: str
    """A sentence that says what is wrong and what would be right."""


@dataclass(slots=True)
class RowFacts:
    """What the report counts of one row, filled while the row is checked."""

    roles: list[str] = field(default_factory=list)
    extra_keys: list[str] = field(default_factory=list)


RowProblem = tuple[str, str, str]
"""Code, path, message."""
RowChecker = Callable[[dict[str, Any], RowFacts], Iterator[RowProblem]]


def row_checker(data_format: str, document_column: str, *, unmask_messages: bool = False) -> RowChecker:
    """Return the function that checks a parsed row of ``data_format``.

    With ``unmask_messages`` a row of messages needs no assistant turn: its user turns are trained.

    Raises:
        ConfigError: if the format is not known.
    """
    if data_format == "messages":
        return partial(check_messages_row, unmask_messages=unmask_messages)
    if data_format == "processed":
        return check_processed_row
    if data_format == "documents":
        return partial(check_document_row, column=document_column)
    raise ConfigError(f"data_format is '{data_format}'; allowed are {', '.join(get_args(DataFormat))}.")


def parse_row(raw: bytes) -> dict[str, Any] | RowProblem:
    """Parse one line as a JSON object; a line that is none gives the problem instead."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _explain_unparsable(raw, error)
    if not isinstance(row, dict):
        return "not-an-object", "", f"The row is {_json_type(row)}, not an object in braces."
    return row


def describe_problem(problem: RowProblem | None) -> str:
    """Return a problem as one sentence for an error message."""
    code, path, message = problem or ("", "", "")
    return f"{path or 'row'}: {message} [{code}]"


def check_messages_row(row: dict[str, Any], facts: RowFacts, *, unmask_messages: bool = False) -> Iterator[RowProblem]:
    """Yield every problem of a row in the messages format."""
    facts.extra_keys.extend(key for key in row if key not in ("messages", "unmask"))
    unmask = row.get("unmask", False)
    if not isinstance(unmask, bool):
        yield "unmask-not-boolean", "unmask", f"unmask is {_json_type(unmask)}; it must be true or false."
    if "messages" not in row:
        yield "messages-missing", "messages", "The row has no 'messages'."
        return
    messages = row["messages"]
    if not isinstance(messages, list):
        yield "messages-not-a-list", "messages", f"messages is {_json_type(messages)}; it must be a list."
        return
    if not messages:
        yield "messages-empty", "messages", "The conversation has no message."
        return
    for index, message in enumerate(messages):
        yield from _check_message(message, index, facts)
    yield from _check_conversation(facts.roles, unmask=unmask_messages or unmask is True)


def check_processed_row(row: dict[str, Any], facts: RowFacts) -> Iterator[RowProblem]:
    """Yield every problem of a row that holds ``input_ids`` and ``labels``."""
    facts.extra_keys.extend(key for key in row if key not in ("input_ids", "labels"))
    problems = [*_check_integers(row, "input_ids", lowest=0), *_check_integers(row, "labels", lowest=IGNORED_LABEL)]
    yield from problems
    if problems:
        return
    input_ids, labels = row["input_ids"], row["labels"]
    if len(input_ids) != len(labels):
        yield "length-mismatch", "labels", f"There are {len(input_ids)} input_ids and {len(labels)} labels."
    for position, label in enumerate(labels):
        if IGNORED_LABEL < label < 0:
            path = f"labels[{position}]"
            yield "label-negative", path, f"The label is {label}; it must be a token id or {IGNORED_LABEL}."
    # Nothing precedes the first token, so nothing predicts it.
    if all(label == IGNORED_LABEL for label in labels[1:]):
        yield "no-trained-label", "labels", f"Every label behind the first is {IGNORED_LABEL}: the row trains nothing."


def check_document_row(row: dict[str, Any], facts: RowFacts, column: str) -> Iterator[RowProblem]:
    """Yield every problem of a row whose ``column`` holds a document's text."""
    facts.extra_keys.extend(key for key in row if key != column)
    if column not in row:
        yield "document-missing", column, f"The row has no column '{column}'."
        return
    yield from _check_text(row[column], column, "document")


def _explain_unparsable(raw: bytes, error: orjson.JSONDecodeError) -> RowProblem:
    """Say why ``raw`` is not JSON, the encoding first."""
    if raw.startswith(BYTE_ORDER_MARK):
        return "byte-order-mark", "", "The line starts with a byte order mark. Save the file as UTF-8 without one."
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as decode_error:
        return "not-utf8", "", f"Byte {decode_error.start + 1} of the line is not UTF-8."
    return "not-json", "", f"The line is not JSON: {error.msg} (column {error.colno})."


def _check_message(message: Any, index: int, facts: RowFacts) -> Iterator[RowProblem]:
    """Yield the problems of one message by itself; its role goes to ``facts``."""
    path = f"messages[{index}]"
    if not isinstance(message, dict):
        facts.roles.append("")
        yield "message-not-an-object", path, f"The message is {_json_type(message)}, not an object in braces."
        return
    facts.extra_keys.extend(f"messages[].{key}" for key in message if key not in MESSAGE_KEYS)
    role = message.get("role")
    known = role if isinstance(role, str) and role in ROLES else ""
    facts.roles.append(known)
    if "role" not in message:
        yield "role-missing", f"{path}.role", "The message has no role."
    elif not known:
        yield "role-unknown", f"{path}.role", f"The role {_short(role)} is not one of {', '.join(ROLES)}."
    if "content" not in message:
        yield "content-missing", f"{path}.content", "The message has no content."
    else:
        yield from _check_text(message["content"], f"{path}.content", "content")
    yield from _check_reasoning(message, role, f"{path}.reasoning_content")


def _check_reasoning(message: dict[str, Any], role: Any, path: str) -> Iterator[RowProblem]:
    """Yield the problems of the optional ``reasoning_content``; null means that there is none."""
    reasoning = message.get("reasoning_content")
    if reasoning is None:
        return
    if not isinstance(reasoning, str):
        yield "reasoning-not-text", path, f"reasoning_content is {_json_type(reasoning)}; it must be text."
    elif "\0" in reasoning:
        yield "reasoning-has-nul", path, "reasoning_content holds the character U+0000."
    if role != "assistant":
        yield "reasoning-not-on-assistant", path, "Only an assistant message may carry reasoning_content."


def _check_conversation(roles: list[str], *, unmask: bool) -> Iterator[RowProblem]:
    """Yield the problems that only the order and the kinds of the roles show."""
    seen = 0
    for index, role in enumerate(roles):
        if role != "system":
            continue
        path = f"messages[{index}].role"
        if seen:
            yield "system-repeated", path, "A conversation has at most one system message."
        elif index:
            yield "system-not-first", path, "The system message must be the first one."
        seen += 1
    trained = {"assistant", "pretraining"} | ({"user"} if unmask else set())
    if trained.isdisjoint(roles):
        yield "no-assistant-turn", "messages", "No turn is trained: there is no assistant or pretraining message."


def _check_text(value: Any, path: str, what: str) -> Iterator[RowProblem]:
    """Yield what keeps ``value`` from being text that can be trained on."""
    if not isinstance(value, str):
        yield f"{what}-not-text", path, f"The {what} is {_json_type(value)}; it must be text."
    elif not value or value.isspace():
        yield f"{what}-empty", path, f"The {what} is empty."
    elif "\0" in value:
        yield f"{what}-has-nul", path, f"The {what} holds the character U+0000."


def _check_integers(row: dict[str, Any], column: str, *, lowest: int) -> Iterator[RowProblem]:
    """Yield what keeps ``row[column]`` from being a list of token ids; of the items, the first wrong one."""
    name = column.replace("_", "-")
    if column not in row:
        yield f"{name}-missing", column, f"The row has no '{column}'."
        return
    values = row[column]
    if not isinstance(values, list):
        yield f"{name}-not-a-list", column, f"{column} is {_json_type(values)}; it must be a list of whole numbers."
        return
    if not values:
        yield f"{name}-empty", column, f"{column} is an empty list."
    for position, value in enumerate(values):
        # A JSON true is an int to Python.
        if type(value) is not int or not lowest <= value <= MAX_TOKEN_ID:
            path = f"{column}[{position}]"
            yield (
                f"{name}-not-integers",
                path,
                f"{_short(value)} is not a whole number from {lowest} to {MAX_TOKEN_ID}.",
            )
            return


def _json_type(value: Any) -> str:
    """Name the JSON type of a parsed value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    """Quote ``value``, cut so that it cannot fill a line."""
    if not isinstance(value, str):
        return _json_type(value) if isinstance(value, list | dict | None) else repr(value)
    return repr(value if len(value) <= MAX_NAME_CHARACTERS else value[:MAX_NAME_CHARACTERS] + "...")
