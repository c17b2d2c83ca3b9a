"""Rows in other tools' shapes, turned into the messages format.

What each shape holds was taken from the tools that defined it: ShareGPT as FastChat, axolotl and LLaMA-Factory read
it; Alpaca from tatsu-lab/stanford_alpaca (a blank line between instruction and input), with LLaMA-Factory's ``system``
and ``history`` and the names of Dolly and GPTeacher (``context``, ``response``); prompt and completion from TRL's
"Dataset formats", as text and as lists of messages. A question beside an answer is no shape: too many data sets mean
something else by it.

Two things differ from the origin. TRL continues a text prompt without a chat template; here prompt and completion
become a user and an assistant turn. And every assistant turn is trained, those in ``history`` and in a ``prompt``
too, as the messages format has it.

A key whose value is null counts as absent: tables give every row every column. Text is copied as it is. Whether it is
empty, or the turns are in order, is checked later on the converted row; :func:`original_path` maps what is found
there back to the row as the user wrote it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from osft.data.validation.findings import RowProblem, quote
from osft.data.validation.json_lines import json_type

SHAPES = ("messages", "sharegpt", "alpaca", "prompt_completion", "documents", "processed")

Message = dict[str, Any]

SPEAKER_KEYS = ("from", "role")
VALUE_KEYS = ("value", "content")
INPUT_KEYS = ("input", "context")
OUTPUT_KEYS = ("output", "response")
COMPLETION_KEYS = ("completion", "response")

ROLE_OF_SPEAKER = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
TOOL_SPEAKERS = frozenset({"tool", "tool_call", "tool_response", "function", "function_call", "observation"})

# A hostile row of a million wrong turns must not fill the memory.
MAX_PROBLEMS = 10

MESSAGE_PATH = re.compile(r"messages(?:\[(\d+)\](\..*)?)?", re.DOTALL)


def recognize(row: dict[str, Any], document_column: str) -> str | None:
    """Return the shape that ``row`` has by its keys, or ``None``.

    The first that fits wins: messages, processed, sharegpt, alpaca, prompt_completion, documents. A row that has only
    the key that a shape begins with (an instruction without an output) has that shape too, so that the problem can be
    named; a whole shape goes before such a part.

    Args:
        row: a parsed row.
        document_column: the column that holds a document's text.
    """
    if row.get("messages") is not None:
        return "messages"
    if row.get("input_ids") is not None:
        return "processed"
    if row.get("conversations") is not None:
        return "sharegpt"
    if row.get("instruction") is not None and _is_one_present(row, OUTPUT_KEYS):
        return "alpaca"
    if row.get("prompt") is not None and _is_one_present(row, COMPLETION_KEYS):
        return "prompt_completion"
    if row.get(document_column) is not None:
        return "documents"
    return _recognize_part(row, document_column)


def output_format(shape: str) -> str:
    """Return the format in which rows of ``shape`` go on: messages, documents or processed."""
    return shape if shape in ("documents", "processed") else "messages"


def convert(row: dict[str, Any], shape: str) -> dict[str, Any] | list[RowProblem]:
    """Return ``row`` in the messages format, or what keeps it from being converted, in terms of ``row``.

    A row that needs no conversion is returned as it is. Otherwise the row is new, ``row`` is not changed, and keys
    that are no part of the shape (``id``, ``unmask``) are kept beside ``messages``. The problems are the first few.
    """
    converter = _CONVERTERS.get(shape)
    if converter is None:
        return row
    problems: list[RowProblem] = []
    messages, used_keys = converter(row, problems)
    if problems:
        return problems
    if row.get("messages") is not None:
        return [("messages-collide", "messages", f"The row has 'messages' beside its {shape} columns; keep one.")]
    converted = dict(row)
    for key in used_keys:
        converted.pop(key, None)
    converted["messages"] = messages
    return converted


def original_path(row: dict[str, Any], shape: str, path: str) -> str:
    """Return where ``path`` of the converted row comes from in ``row``, the row before its conversion.

    Args:
        row: a row that :func:`convert` converts.
        shape: its shape.
        path: such as ``messages[2].content``; paths outside ``messages`` stay as they are.

    Returns:
        Such as ``conversations[2].value``.
    """
    match = MESSAGE_PATH.fullmatch(path)
    if match is None or shape not in _CONVERTERS:
        return path
    index, field = match.groups()
    if index is None:
        return _whole_conversation(row, shape)
    origins = _ORIGINS[shape](row)
    origin, is_message = origins[int(index)]
    if not is_message:
        return origin
    turn = row["conversations"][int(index) - _has_system(row)] if shape == "sharegpt" else {}
    return origin + _original_field(turn, field or "")


def _whole_conversation(row: dict[str, Any], shape: str) -> str:
    """Return the column that holds the list of messages, or that decides what is trained; empty for the row."""
    if shape == "sharegpt":
        return "conversations"
    return "" if shape == "alpaca" else _filled_key(row, COMPLETION_KEYS) or ""


def _recognize_part(row: dict[str, Any], document_column: str) -> str | None:
    """Return the shape of a row that is no whole one, by the key that the shape begins with."""
    first_keys = {
        "messages": "messages",
        "input_ids": "processed",
        "conversations": "sharegpt",
        "instruction": "alpaca",
        "prompt": "prompt_completion",
    }
    keys = [key for key in (*first_keys, document_column) if key in row]
    keys.sort(key=lambda key: row[key] is None)
    return first_keys.get(keys[0], "documents") if keys else None


def _present_key(fields: dict[str, Any], keys: tuple[str, str]) -> str | None:
    """Return the first of ``keys`` whose value is not null."""
    first, second = keys
    if fields.get(first) is not None:
        return first
    return second if fields.get(second) is not None else None


def _filled_key(fields: dict[str, Any], keys: tuple[str, str]) -> str | None:
    """Return the first of ``keys`` whose value is neither null nor blank text, else the first that is not null."""
    for key in keys:
        value = fields.get(key)
        if value is not None and not (isinstance(value, str) and (not value or value.isspace())):
            return key
    return _present_key(fields, keys)


def _is_one_present(fields: dict[str, Any], keys: tuple[str, str]) -> bool:
    return fields.get(keys[0]) is not None or fields.get(keys[1]) is not None


def _has_system(row: dict[str, Any]) -> bool:
    """Tell whether the column ``system`` becomes a message; blank text means that there is none."""
    system = row.get("system")
    return isinstance(system, str) and bool(system) and not system.isspace()


def _system_messages(row: dict[str, Any], problems: list[RowProblem]) -> list[Message]:
    """Return the message of the column ``system``, in a list that is empty if there is none."""
    system = row.get("system")
    if system is None:
        return []
    if not isinstance(system, str):
        problems.append(("system-not-text", "system", f"system is {json_type(system)}; it must be text."))
        return []
    return [{"role": "system", "content": system}] if _has_system(row) else []


def _convert_sharegpt(row: dict[str, Any], problems: list[RowProblem]) -> tuple[list[Message], Iterable[str]]:
    messages = _system_messages(row, problems)
    turns = row.get("conversations")
    if not isinstance(turns, list):
        problems.append(("sharegpt-not-a-list", "conversations", "The row needs 'conversations', a list of turns."))
        return messages, ()
    for index, turn in enumerate(turns):
        messages.append(_convert_turn(turn, index, problems))
        if len(problems) >= MAX_PROBLEMS:
            break
    return messages, ("conversations", "system")


def _convert_turn(turn: Any, index: int, problems: list[RowProblem]) -> Message:
    """Return one turn as a message; if it is none, add why to ``problems``."""
    if not isinstance(turn, dict):
        path = f"conversations[{index}]"
        problems.append(
            ("sharegpt-turn-not-an-object", path, f"The turn is {json_type(turn)}, not an object in braces.")
        )
        return {}
    speaker, value = turn.get("from"), turn.get("value")
    # Nearly every turn: what follows finds the same in twice the time.
    if len(turn) == 2 and isinstance(speaker, str) and speaker in ROLE_OF_SPEAKER and isinstance(value, str):
        return {"role": ROLE_OF_SPEAKER[speaker], "content": value}
    speaker_key, value_key = _present_key(turn, SPEAKER_KEYS), _present_key(turn, VALUE_KEYS)
    speaker = turn[speaker_key] if speaker_key else None
    value = turn[value_key] if value_key else None
    role = ROLE_OF_SPEAKER.get(speaker) if isinstance(speaker, str) else None
    if role is None or not isinstance(value, str):
        problems.extend(_explain_turn(turn, index))
        return {}
    others = {key: turn[key] for key in turn if key not in (speaker_key, value_key)}
    return others | {"role": role, "content": value}


def _explain_turn(turn: dict[str, Any], index: int) -> Iterable[RowProblem]:
    """Yield what keeps a turn from being a message."""
    path = f"conversations[{index}]"
    speaker_key, value_key = _present_key(turn, SPEAKER_KEYS), _present_key(turn, VALUE_KEYS)
    speaker = turn[speaker_key] if speaker_key else None
    if speaker_key is None:
        yield "sharegpt-speaker-missing", f"{path}.from", "The turn does not say who speaks: it has no 'from'."
    elif not isinstance(speaker, str):
        yield (
            "sharegpt-speaker-unknown",
            f"{path}.{speaker_key}",
            f"The speaker is {json_type(speaker)}; it must be text.",
        )
    elif speaker in TOOL_SPEAKERS:
        message = f"Turns of '{speaker}' cannot be trained: the messages format has no tool calls. Remove the row."
        yield "sharegpt-tool-turn", f"{path}.{speaker_key}", message
    elif speaker not in ROLE_OF_SPEAKER:
        message = f"The speaker {quote(speaker)} is not one of {', '.join(ROLE_OF_SPEAKER)}."
        yield "sharegpt-speaker-unknown", f"{path}.{speaker_key}", message
    if value_key is None:
        yield "sharegpt-value-missing", f"{path}.value", "The turn says nothing: it has no 'value'."
    elif not isinstance(turn[value_key], str):
        message = f"{value_key} is {json_type(turn[value_key])}; it must be text."
        yield "sharegpt-value-not-text", f"{path}.{value_key}", message


def _convert_alpaca(row: dict[str, Any], problems: list[RowProblem]) -> tuple[list[Message], Iterable[str]]:
    messages = _system_messages(row, problems)
    messages += _convert_history(row.get("history"), problems)
    input_key, output_key = _filled_key(row, INPUT_KEYS), _filled_key(row, OUTPUT_KEYS)
    _require_text(row, "instruction", "alpaca-instruction", problems)
    if input_key is not None:
        _require_text(row, input_key, "alpaca-input", problems)
    _require_text(row, output_key or OUTPUT_KEYS[0], "alpaca-output", problems)
    if problems:
        return [], ()
    # Without an output there is a problem, so the key is there.
    output = row[output_key or OUTPUT_KEYS[0]]
    messages.append({"role": "user", "content": _join_question(row["instruction"], row.get(input_key or "") or "")})
    messages.append({"role": "assistant", "content": output})
    return messages, ("instruction", input_key or INPUT_KEYS[0], output_key or "", "system", "history")


def _join_question(instruction: str, given_input: str) -> str:
    """Put a blank line between instruction and input; if one of them is blank, return the other."""
    if not given_input or given_input.isspace():
        return instruction
    return given_input if not instruction or instruction.isspace() else f"{instruction}\n\n{given_input}"


def _convert_history(history: Any, problems: list[RowProblem]) -> list[Message]:
    """Return the turns of earlier questions and answers."""
    if history is None:
        return []
    if not isinstance(history, list):
        message = f"history is {json_type(history)}; it must be a list of [question, answer]."
        problems.append(("alpaca-history-not-a-list", "history", message))
        return []
    messages = []
    for index, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            message = "An entry of history must be a list of two texts, [question, answer]."
            problems.append(("alpaca-history-not-a-pair", f"history[{index}]", message))
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _require_text(row: dict[str, Any], key: str, code: str, problems: list[RowProblem]) -> None:
    """Add a problem unless ``row[key]`` is text."""
    value = row.get(key)
    if value is None:
        problems.append((f"{code}-missing", key, f"The row has no '{key}'."))
    elif not isinstance(value, str):
        problems.append((f"{code}-not-text", key, f"{key} is {json_type(value)}; it must be text."))


def _convert_prompt_completion(row: dict[str, Any], problems: list[RowProblem]) -> tuple[list[Message], Iterable[str]]:
    messages = _system_messages(row, problems)
    completion_key = _filled_key(row, COMPLETION_KEYS)
    messages += _convert_side(row, "prompt", "user", problems)
    messages += _convert_side(row, completion_key or COMPLETION_KEYS[0], "assistant", problems)
    # TRL's unpaired preference data: the same two columns, and completions that show what not to say.
    if row.get("label") is False:
        message = "label is false: the completion is one that is not wanted, and would be trained."
        problems.append(("prompt-completion-unwanted", "label", message))
    return messages, ("prompt", completion_key or "", "system")


def _convert_side(row: dict[str, Any], key: str, role: str, problems: list[RowProblem]) -> list[Message]:
    """Return a prompt or a completion as messages: text as one of ``role``, a list of messages as it is."""
    value = row.get(key)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return value
    what = "prompt" if key == "prompt" else "completion"
    if value is None:
        problems.append((f"{what}-missing", key, f"The row has no '{key}'."))
    else:
        problems.append(
            (f"{what}-not-text", key, f"{key} is {json_type(value)}; it must be text or a list of messages.")
        )
    return []


_Origins = list[tuple[str, bool]]
"""For each message its path in the original row, and whether a message (or a turn) stands there rather than text."""


def _system_origins(row: dict[str, Any]) -> _Origins:
    return [("system", False)] if _has_system(row) else []


def _sharegpt_origins(row: dict[str, Any]) -> _Origins:
    return _system_origins(row) + [(f"conversations[{index}]", True) for index in range(len(row["conversations"]))]


def _alpaca_origins(row: dict[str, Any]) -> _Origins:
    history = [f"history[{index}][{side}]" for index in range(len(row.get("history") or ())) for side in (0, 1)]
    texts = [*history, _question_origin(row), _filled_key(row, OUTPUT_KEYS) or OUTPUT_KEYS[0]]
    return _system_origins(row) + [(text, False) for text in texts]


def _question_origin(row: dict[str, Any]) -> str:
    """Return the column to blame for the question: the input if the instruction is in order and it is not."""
    instruction, input_key = row["instruction"], _filled_key(row, INPUT_KEYS)
    if input_key is None or "\0" in instruction:
        return "instruction"
    return input_key if "\0" in row[input_key] else "instruction"


def _prompt_completion_origins(row: dict[str, Any]) -> _Origins:
    origins = _system_origins(row)
    for key in ("prompt", _filled_key(row, COMPLETION_KEYS) or COMPLETION_KEYS[0]):
        value = row[key]
        origins += [(key, False)] if isinstance(value, str) else [(f"{key}[{i}]", True) for i in range(len(value))]
    return origins


def _original_field(turn: dict[str, Any], field: str) -> str:
    """Return ``.role`` and ``.content`` as the names that ``turn`` uses for them."""
    names = {".role": _present_key(turn, SPEAKER_KEYS), ".content": _present_key(turn, VALUE_KEYS)}
    name = names.get(field)
    return field if name is None else f".{name}"


_CONVERTERS: dict[str, Callable[[dict[str, Any], list[RowProblem]], tuple[list[Message], Iterable[str]]]] = {
    "sharegpt": _convert_sharegpt,
    "alpaca": _convert_alpaca,
    "prompt_completion": _convert_prompt_completion,
}
_ORIGINS: dict[str, Callable[[dict[str, Any]], _Origins]] = {
    "sharegpt": _sharegpt_origins,
    "alpaca": _alpaca_origins,
    "prompt_completion": _prompt_completion_origins,
}
