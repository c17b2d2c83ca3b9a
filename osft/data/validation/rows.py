"""What one row must hold, for each format, and the problems when it does not.

A problem's code is stable: scripts may match it. Its message is for people and never repeats the row's text beyond
a short name, because messages end up in logs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import orjson

from osft.data.validation.findings import RowProblem, cut, quote
from osft.data.validation.json_lines import explain_unparsable, json_type
from osft.errors import ConfigError

DataFormat = Literal["messages", "processed", "documents"]
ROLES = ("system", "user", "assistant", "pretraining")
MESSAGE_KEYS = frozenset({"role", "content", "reasoning_content"})
ROW_KEYS = frozenset({"messages", "unmask"})
PROCESSED_KEYS = frozenset({"input_ids", "labels"})
# In the report's lengths of texts, beside the roles.
DOCUMENT = "document"
IGNORED_LABEL = -100
# Token ids are stored in 32 bits.
MAX_TOKEN_ID = 2**31 - 1
# At a usual hundred tokens a turn this fills a context of 128k tokens, and the template is rendered once a turn, so
# that the time grows with the square of their number. More of them are rows that were joined by mistake.
MAX_TURNS = 1_000


@dataclass(slots=True)
class RowFacts:
    """What the report counts, of one row or of many; filled while rows are checked."""

    texts: list[tuple[str, int]] = field(default_factory=list)
    """Of each message its role, of a document :data:`DOCUMENT`, and the power of two that bounds its characters."""

    turns: list[int] = field(default_factory=list)
    """Of each conversation its number of messages."""

    extra_keys: list[str] = field(default_factory=list)
    """Keys outside the schema, ``messages[].name`` for those of messages."""

    def add_text(self, kind: str, text: Any) -> None:
        """Count one text; what is no text is a problem, and no fact."""
        if isinstance(text, str):
            self.texts.append((kind, length_class(len(text))))

    def mark(self) -> tuple[int, int, int]:
        """Return where the facts end now, for :meth:`forget`."""
        return len(self.texts), len(self.turns), len(self.extra_keys)

    def forget(self, mark: tuple[int, int, int]) -> None:
        """Take back what was added since ``mark``."""
        texts, turns, extra_keys = mark
        del self.texts[texts:], self.turns[turns:], self.extra_keys[extra_keys:]

    def select(self, marks: Sequence[tuple[int, int, int]], taken: Sequence[bool]) -> "RowFacts":
        """Return the facts of the rows that are ``taken``.

        Args:
            marks: for each row, in order, where the facts ended with it.
            taken: for each row.
        """
        selected = RowFacts()
        for before, after, is_taken in zip([(0, 0, 0), *marks], marks, taken, strict=False):
            if is_taken:
                selected.texts += self.texts[before[0] : after[0]]
                selected.turns += self.turns[before[1] : after[1]]
                selected.extra_keys += self.extra_keys[before[2] : after[2]]
        return selected

    def extend(self, other: "RowFacts") -> None:
        """Add the facts of ``other`` to these."""
        self.texts += other.texts
        self.turns += other.turns
        self.extra_keys += other.extra_keys


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


def length_class(length: int) -> int:
    """Return ``n`` for a length above ``2**(n-1)`` and up to ``2**n``."""
    return max(length - 1, 0).bit_length()


def parse_row(raw: bytes) -> dict[str, Any] | RowProblem:
    """Parse one line as a JSON object; a line that is none gives the problem instead."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return explain_unparsable(raw, error)
    if not isinstance(row, dict):
        return "not-an-object", "", f"The row is {json_type(row)}, not an object in braces."
    return row


def describe_problem(problem: RowProblem | None) -> str:
    """Return a problem as one sentence for an error message."""
    code, path, message = problem or ("", "", "")
    return f"{path or 'row'}: {message} [{code}]"


def check_messages_row(row: dict[str, Any], facts: RowFacts, *, unmask_messages: bool = False) -> Iterator[RowProblem]:
    """Yield every problem of a row in the messages format."""
    facts.extra_keys.extend(cut(key) for key in row if key not in ROW_KEYS)
    # Tables give every row every column, so null means that there is none.
    unmask = row.get("unmask")
    if not isinstance(unmask, bool | None):
        yield "unmask-not-boolean", "unmask", f"unmask is {json_type(unmask)}; it must be true or false."
    if "messages" not in row:
        yield "messages-missing", "messages", "The row has no 'messages'."
        return
    messages = row["messages"]
    if not isinstance(messages, list):
        yield "messages-not-a-list", "messages", f"messages is {json_type(messages)}; it must be a list."
        return
    if not messages:
        yield "messages-empty", "messages", "The conversation has no message."
        return
    if len(messages) > MAX_TURNS:
        yield "too-many-turns", "messages", f"There are {len(messages)} messages; at most {MAX_TURNS} are rendered."
        return
    facts.turns.append(len(messages))
    roles = [_known_role(message) for message in messages]
    for index, message in enumerate(messages):
        yield from _check_message(message, index, facts)
    yield from _check_conversation(roles, unmask=unmask_messages or unmask is True)


def check_processed_row(row: dict[str, Any], facts: RowFacts) -> Iterator[RowProblem]:
    """Yield every problem of a row that holds ``input_ids`` and ``labels``."""
    facts.extra_keys.extend(cut(key) for key in row if key not in PROCESSED_KEYS)
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
    facts.extra_keys.extend(cut(key) for key in row if key != column)
    if column not in row:
        yield "document-missing", column, f"The row has no column '{column}'."
        return
    yield from _check_text(row[column], column, "document")
    facts.add_text(DOCUMENT, row[column])


def _check_message(message: Any, index: int, facts: RowFacts) -> Iterator[RowProblem]:
    """Yield the problems of one message by itself."""
    path = f"messages[{index}]"
    if not isinstance(message, dict):
        yield "message-not-an-object", path, f"The message is {json_type(message)}, not an object in braces."
        return
    facts.extra_keys.extend(f"messages[].{cut(key)}" for key in message if key not in MESSAGE_KEYS)
    role = message.get("role")
    known = _known_role(message)
    if "role" not in message:
        yield "role-missing", f"{path}.role", "The message has no role."
    elif not known:
        yield "role-unknown", f"{path}.role", f"The role {_short(role)} is not one of {', '.join(ROLES)}."
    if "content" not in message:
        yield "content-missing", f"{path}.content", "The message has no content."
    else:
        yield from _check_text(message["content"], f"{path}.content", "content")
        facts.add_text(known, message["content"])
    yield from _check_reasoning(message, role, f"{path}.reasoning_content")


def _known_role(message: Any) -> str:
    """Return the role of a message if it has one that is allowed, else an empty text."""
    role = message.get("role") if isinstance(message, dict) else None
    return role if isinstance(role, str) and role in ROLES else ""


def _check_reasoning(message: dict[str, Any], role: Any, path: str) -> Iterator[RowProblem]:
    """Yield the problems of the optional ``reasoning_content``; null means that there is none."""
    reasoning = message.get("reasoning_content")
    if reasoning is None:
        return
    if not isinstance(reasoning, str):
        yield "reasoning-not-text", path, f"reasoning_content is {json_type(reasoning)}; it must be text."
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
        yield f"{what}-not-text", path, f"The {what} is {json_type(value)}; it must be text."
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
        yield f"{name}-not-a-list", column, f"{column} is {json_type(values)}; it must be a list of whole numbers."
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


def _short(value: Any) -> str:
    """Quote ``value``, cut so that it cannot fill a line."""
    if not isinstance(value, str):
        return json_type(value) if isinstance(value, list | dict | None) else repr(value)
    return quote(value)
