"""Conversations through the model's own chat template: their text, and which characters of it are trained.

The template decides the text; this module only finds out where it put each message. A conversation is rendered twice:
as it is, and with one private-use character behind each message's content. If the second text without those
characters is the first, they say exactly where every content ends, whatever the template does around it: inject a
default system prompt, strip white space, drop the reasoning of earlier turns (Qwen3), need alternating roles. A
template that rewrites content is refused. Prefixes are never compared, so none needs to be one. The second rendering
is left out where :mod:`osft.data.processing.skeletons` foretold the text of the first.

Trained of an assistant turn: what the template's ``{% generation %}`` blocks hold, if it has them. Otherwise
everything that the model must produce, from the end of the generation prompt to the token that closes the turn. Both
are learnt once from the template with a two-message conversation. So reasoning, its tags and an empty think block are
trained where the template renders them, the header and the line break after the closing token are not.
instructlab-training trains from the first character of the content instead, and closes a turn with the tokenizer's
EOS token only, which for Gemma's template never comes.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

from transformers import PreTrainedTokenizerBase

from osft.data.processing.chat_template import TEMPLATE_ERRORS, ChatTemplate, Message, Span
from osft.data.processing.control_text import FIRST_STAND_IN, ControlText, free_plane
from osft.data.processing.skeletons import Skeletons
from osft.errors import DataError, one_line

logger = logging.getLogger(__name__)

MAX_MESSAGES = FIRST_STAND_IN


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One row to render."""

    place: str
    """Where the row stands, for errors: ``line 17``."""

    messages: Sequence[Message]
    """Validated messages; keys other than role, content and reasoning_content are not rendered."""

    unmask: bool = False
    """Train the contents of user messages too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedRow:
    """The text of one row and what of it is trained."""

    text: str
    spans: tuple[Span, ...]
    """Trained characters: pairs of first index and index behind the last, in order, without overlap."""

    messages_not_rendered: int = 0
    """System and user messages that the template left out."""

    reasoning_not_rendered: int = 0
    """Assistant turns whose ``reasoning_content`` the template left out."""

    plane: int | None = None
    """Set if a message spells out a special token: the text is for :meth:`ControlText.encode`, with this plane."""


class ConversationRenderer:
    """Renders conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_text: ControlText) -> None:
        """Read the chat template.

        Raises:
            ConfigError: if the tokenizer has no chat template, or one that cannot render a question and an answer.
        """
        self._tokenizer = tokenizer
        self._control_text = control_text
        self._template = ChatTemplate(tokenizer)
        self._skeletons = Skeletons(lambda messages: self._template.render([messages])[0])
        self._has_warned = False

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedRow]:
        """Render rows; ``pretraining`` messages are taken as they are, followed by EOS, and trained whole.

        Raises:
            DataError: naming the row, if the template refuses the conversation or rewrites its content.
        """
        rows = [self._prepare(conversation) for conversation in conversations]
        chats = iter(self._render_chats(rows))
        return [self._finish(row, chats) for row in rows]

    def _prepare(self, conversation: Conversation) -> "_Row":
        """Keep what the template gets to see, with stand-ins for special tokens, in runs that it renders as one."""
        messages = [without_extra_keys(message) for message in conversation.messages]
        plane = None
        texts = _texts(messages)
        if any(map(self._control_text.occurs_in, texts)):
            try:
                plane = free_plane(texts)
                messages = [self._escape(message, plane) for message in messages]
            except DataError as error:
                raise _refusal(conversation, error) from error
        return _Row(conversation=conversation, runs=_split_at_pretraining(messages), plane=plane)

    def _escape(self, message: Message, plane: int) -> Message:
        return {
            key: value if key == "role" else self._control_text.escape(value, plane) for key, value in message.items()
        }

    def _render_chats(self, rows: Sequence["_Row"]) -> list[tuple[str, list[Span]]]:
        """Render what goes through the template in one call: text, and the spans of its generation blocks."""
        chats = [run for row in rows for run in row.runs if not _is_pretraining(run)]
        try:
            return self._template.render_with_spans(chats)
        except TEMPLATE_ERRORS:
            # One of them is to blame; each by itself says which.
            return [chat for row in rows for chat in self._render_row(row)]

    def _render_row(self, row: "_Row") -> list[tuple[str, list[Span]]]:
        chats = [run for run in row.runs if not _is_pretraining(run)]
        try:
            return self._template.render_with_spans(chats)
        except TEMPLATE_ERRORS as error:
            raise _refusal(row.conversation, self._explain(chats[0], error)) from error

    def _explain(self, messages: Sequence[Message], error: Exception) -> str:
        """Say what the template has against a conversation, and the mend."""
        if messages[0]["role"] == "system" and len(messages) > 1:
            try:
                self._template.render([messages[1:]])
            except TEMPLATE_ERRORS:
                logger.debug("the chat template refuses the conversation without its system message too")
            else:
                return (
                    f"the chat template takes no system message ({one_line(error)}). "
                    "Put its text in front of the first user message"
                )
        return f"the chat template refuses the conversation ({one_line(error)}). Change its roles or their order"

    def _finish(self, row: "_Row", chats: Iterator[tuple[str, list[Span]]]) -> RenderedRow:
        """Find what is trained in the texts of one row, the next of ``chats``, and join them."""
        parts = []
        try:
            for run in row.runs:
                if _is_pretraining(run):
                    text = run[0]["content"] + (self._tokenizer.eos_token or "")
                    parts.append(RenderedRow(text=text, spans=((0, len(text)),)))
                else:
                    parts.append(self._find_spans(row, run, *next(chats)))
        except DataError as error:
            raise _refusal(row.conversation, error) from error
        rendered = parts[0] if len(parts) == 1 else _join(parts)
        return rendered if row.plane is None else self._spell_out(rendered, row.plane)

    def _spell_out(self, rendered: RenderedRow, plane: int) -> RenderedRow:
        """Let the special tokens and their stand-ins change places."""
        bounds = [0, *chain.from_iterable(rendered.spans), len(rendered.text)]
        pieces = [self._control_text.swap(rendered.text[start:end], plane) for start, end in pairwise(bounds)]
        places = list(accumulate(map(len, pieces)))
        return replace(
            rendered,
            text="".join(pieces),
            spans=tuple(zip(places[:-1:2], places[1::2], strict=True)),
            plane=plane,
        )

    def _find_spans(
        self, row: "_Row", messages: Sequence[Message], text: str, generated: Sequence[Span]
    ) -> RenderedRow:
        """Turn the places where contents end into trained spans."""
        ends = self._skeletons.predict(messages, text)
        if ends is None:
            ends = self._find_ends(messages, text, row.plane)
        spans = [span for span in generated if span[0] < span[1]]
        not_rendered = reasoning_not_rendered = 0
        # Not the order of the messages: Mistral's template puts the system message into the last user turn.
        order = sorted([end for end in ends if end is not None])
        for index, (message, end) in enumerate(zip(messages, ends, strict=True)):
            role = message["role"]
            if end is None:
                if role == "assistant":
                    raise DataError(f"messages[{index}]: the chat template leaves this assistant turn out")
                not_rendered += 1
            elif role == "assistant":
                before = bisect_left(order, end)
                lowest = order[before - 1] if before else 0
                if not self._template.has_generation_blocks:
                    stop = self._turn_end(text, end)
                    spans.append((self._turn_start(text, lowest, end, index), stop))
                    self._warn_of_open_turn(row.conversation.place, is_open=stop == end)
                if "reasoning_content" in message:
                    # Before the content, which may hold the same words.
                    content_start = end - len(message["content"].strip())
                    reasoning_not_rendered += text.find(message["reasoning_content"].strip(), lowest, content_start) < 0
            elif row.conversation.unmask and role == "user":
                spans.append((_content_start(text, message["content"], end, index), end))
        return RenderedRow(
            text=text,
            spans=tuple(sorted(spans)),
            messages_not_rendered=not_rendered,
            reasoning_not_rendered=reasoning_not_rendered,
        )

    def _find_ends(self, messages: Sequence[Message], text: str, plane: int | None) -> list[int | None]:
        """Return where each content ends in ``text``, by rendering the conversation once more with marks."""
        if len(messages) > MAX_MESSAGES:
            raise DataError(f"the conversation has {len(messages)} messages, more than {MAX_MESSAGES}. Split it")
        first_mark = free_plane(_texts(messages)) if plane is None else plane
        marked = [
            {**message, "content": _mark_end(message["content"], chr(first_mark + index))}
            for index, message in enumerate(messages)
        ]
        try:
            marked_text = self._template.render([marked])[0]
        except TEMPLATE_ERRORS as error:
            raise DataError(self._explain(messages, error)) from error
        unmarked, ends = _take_marks_out(marked_text, first_mark, len(messages))
        if unmarked != text:
            raise DataError(
                "the chat template rewrites or interprets the content, so its turns cannot be found. "
                "Remove template syntax such as <think> or <tool_response> from the contents"
            )
        return ends

    def _turn_start(self, text: str, lowest: int, end: int, index: int) -> int:
        """Return the index behind the header of the assistant turn whose content ends at ``end``."""
        for header in self._template.frame.headers:
            # The first one after the message before: a later one would be part of the content.
            found = text.find(header, lowest, end)
            if found >= 0:
                return found + len(header)
        raise DataError(
            f"messages[{index}]: the chat template writes no assistant header before this turn. "
            "Let each assistant message follow a user message"
        )

    def _turn_end(self, text: str, end: int) -> int:
        """Return the index behind the turn's closing token, or behind its content if nothing closes it."""
        closing = self._template.frame.closing
        # White space that ends the content and that the template kept lies between the content's mark and the closing.
        position = end
        while closing and not text.startswith(closing, position):
            if position == len(text) or not text[position].isspace():
                return end
            position += 1
        return position + len(closing)

    def _warn_of_open_turn(self, place: str, *, is_open: bool) -> None:
        """Warn, once, of a turn that the template does not close as it closed the probe's."""
        if is_open and self._template.frame.closing and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: the chat template does not close an assistant turn with '%s' there, as it does elsewhere; what "
                "closes it is not trained",
                place,
                self._template.frame.closing.strip(),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A conversation, ready for the template."""

    conversation: Conversation
    runs: list[list[Message]]
    """Messages that the template renders as one; a ``pretraining`` message is a run of its own."""

    plane: int | None


def _refusal(conversation: Conversation, reason: object) -> DataError:
    return DataError(f"{conversation.place}: {reason}, or remove the row.")


def without_extra_keys(message: Message) -> Message:
    """Return the keys of ``message`` that the template gets to see."""
    if len(message) == 2:
        return message
    keys = ("role", "content", "reasoning_content")
    return {key: message[key] for key in keys if message.get(key) is not None}


def _texts(messages: Sequence[Message]) -> list[str]:
    return [value for message in messages for key, value in message.items() if key != "role"]


def _split_at_pretraining(messages: list[Message]) -> list[list[Message]]:
    if not any(message["role"] == "pretraining" for message in messages):
        return [messages]
    runs: list[list[Message]] = []
    for message in messages:
        if runs and not _is_pretraining([message]) and not _is_pretraining(runs[-1]):
            runs[-1].append(message)
        else:
            runs.append([message])
    return runs


def _is_pretraining(run: Sequence[Message]) -> bool:
    return run[0]["role"] == "pretraining"


def _mark_end(content: str, mark: str) -> str:
    """Put ``mark`` behind the content's last character that is not white space, so that stripping keeps it."""
    body = content.rstrip()
    return body + mark + content[len(body) :]


def _take_marks_out(text: str, plane: int, count: int) -> tuple[str, list[int | None]]:
    """Return ``text`` without the marks, and for each mark where it stood first, ``None`` if it is not there."""
    pieces: list[str] = []
    ends: list[int | None] = [None] * count
    position = length = 0
    for match in re.finditer(f"[{chr(plane)}-{chr(plane + count - 1)}]", text):
        pieces.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        index = ord(match.group()) - plane
        ends[index] = length if ends[index] is None else ends[index]
    pieces.append(text[position:])
    return "".join(pieces), ends


def _content_start(text: str, content: str, end: int, index: int) -> int:
    """Return where the user content that ends at ``end`` starts, leading white space left out."""
    stripped = content.strip()
    if not text.endswith(stripped, 0, end):
        raise DataError(f"messages[{index}]: the chat template rewrites this user message, so it cannot be unmasked")
    return end - len(stripped)


def _join(parts: Sequence[RenderedRow]) -> RenderedRow:
    """Put rendered parts one behind the other."""
    spans: list[Span] = []
    length = 0
    for part in parts:
        spans.extend((start + length, end + length) for start, end in part.spans)
        length += len(part.text)
    return RenderedRow(
        text="".join(part.text for part in parts),
        spans=tuple(spans),
        messages_not_rendered=sum(part.messages_not_rendered for part in parts),
        reasoning_not_rendered=sum(part.reasoning_not_rendered for part in parts),
    )
