"""A conversation through the model's own chat template: its text, and which characters of it are trained.

The template decides the text; this module only finds out where it put each message. The conversation is rendered
twice: as it is, and with one private-use character behind each message's content. If the second text without those
characters is the first, they say exactly where every content ends, whatever the template does around it: inject a
default system prompt, strip white space, drop the reasoning of earlier turns (Qwen3), need alternating roles. A
template that rewrites content is refused. Prefixes are never compared, so none needs to be one.

Trained of an assistant turn: everything that the model must produce, from the end of the generation prompt to the
token that closes the turn. Both are learnt once from the template with a two-message conversation. So reasoning,
its tags and an empty think block are trained where the template renders them, the header and the line break after
the closing token are not. instructlab-training trains from the first character of the content instead, and closes
a turn with the tokenizer's EOS token only, which for Gemma's template never comes.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from osft.errors import ConfigError, DataError, one_line

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
Span = tuple[int, int]
# Two planes that Unicode keeps for private use; a conversation with characters of one is marked with the other.
MARK_PLANES = (0xF0000, 0x100000)
MAX_MESSAGES = 65_000
# A template is a small program; these are the ways in which one fails on a conversation it was not written for.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# Contents of the probe: one word that no template looks for.
PROBE_USER, PROBE_ASSISTANT = "osftquestion", "osftanswer"


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


@dataclass(frozen=True, slots=True)
class TurnFrame:
    """What a template writes around an assistant's content, learnt from the template itself."""

    headers: tuple[str, ...]
    """Texts after which the model's own turn starts, the generation prompt first."""

    closing: str
    """From the end of the content through the token that closes the turn; empty if none does."""


class ConversationRenderer:
    """Renders conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Learn the template's turn frame.

        Raises:
            ConfigError: if the tokenizer has no chat template, or one that cannot render a question and an answer.
        """
        if not tokenizer.chat_template:
            raise ConfigError(
                f"model '{tokenizer.name_or_path}': its tokenizer has no chat template. Use the model's instruct "
                "variant, or save a chat_template.jinja beside its tokenizer files."
            )
        self._tokenizer = tokenizer
        try:
            self.frame = self._learn_frame()
        except TEMPLATE_ERRORS as error:
            raise ConfigError(
                f"model '{tokenizer.name_or_path}': its chat template cannot render a user and an assistant message "
                f"({one_line(error)}). Use a model with a working template."
            ) from error

    def render(self, messages: Sequence[Message], *, unmask: bool) -> RenderedRow:
        """Render one row; ``pretraining`` messages are taken as they are, followed by EOS, and trained whole.

        Args:
            messages: validated messages; keys other than role, content and reasoning_content are not rendered.
            unmask: train the contents of user messages too.

        Raises:
            DataError: if the template refuses the conversation or rewrites its content; without the row's place.
        """
        parts: list[RenderedRow] = []
        chat: list[Message] = []
        for message in messages:
            if message["role"] != "pretraining":
                chat.append(message)
                continue
            if chat:
                parts.append(self._render_chat(chat, unmask=unmask))
                chat = []
            text = message["content"] + (self._tokenizer.eos_token or "")
            parts.append(RenderedRow(text=text, spans=((0, len(text)),)))
        if chat:
            parts.append(self._render_chat(chat, unmask=unmask))
        return parts[0] if len(parts) == 1 else _join(parts)

    def _render_chat(self, messages: Sequence[Message], *, unmask: bool) -> RenderedRow:
        """Render messages that all go through the template."""
        cleaned = [{key: message[key] for key in _template_keys(message)} for message in messages]
        plane = _free_plane(cleaned)
        marked = [
            {**message, "content": _mark_end(message["content"], chr(plane + index))}
            for index, message in enumerate(cleaned)
        ]
        try:
            text, marked_text = self._apply(cleaned), self._apply(marked)
        except TEMPLATE_ERRORS as error:
            raise DataError(
                f"the chat template refuses the conversation ({one_line(error)}). Change its roles or their order"
            ) from error
        unmarked, ends = _take_marks_out(marked_text, plane, len(cleaned))
        if unmarked != text:
            raise DataError(
                "the chat template rewrites or interprets the content, so its turns cannot be found. "
                "Remove template syntax such as <think> or <tool_response> from the contents"
            )
        return self._find_spans(cleaned, text, ends, unmask=unmask)

    def _find_spans(
        self, messages: Sequence[Message], text: str, ends: Sequence[int | None], *, unmask: bool
    ) -> RenderedRow:
        """Turn the places where contents end into trained spans."""
        spans: list[Span] = []
        not_rendered = reasoning_not_rendered = 0
        # Not the order of the messages: Mistral's template puts the system message into the last user turn.
        order = sorted(end for end in ends if end is not None)
        for index, (message, end) in enumerate(zip(messages, ends, strict=True)):
            assistant = message["role"] == "assistant"
            if end is None:
                if assistant:
                    raise DataError(f"messages[{index}]: the chat template leaves this assistant turn out")
                not_rendered += 1
                continue
            if assistant:
                before = bisect_left(order, end)
                start = self._turn_start(text, order[before - 1] if before else 0, end, index)
                spans.append((start, self._turn_end(text, end)))
                reasoning = message.get("reasoning_content", "").strip()
                reasoning_not_rendered += reasoning not in text[start:end]
            elif unmask and message["role"] == "user":
                spans.append((_content_start(text, message["content"], end, index), end))
        return RenderedRow(
            text=text,
            spans=tuple(sorted(spans)),
            messages_not_rendered=not_rendered,
            reasoning_not_rendered=reasoning_not_rendered,
        )

    def _turn_start(self, text: str, lowest: int, end: int, index: int) -> int:
        """Return the index behind the header of the assistant turn whose content ends at ``end``."""
        for header in self.frame.headers:
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
        closing = self.frame.closing
        # White space that ends the content and that the template kept lies between the content's mark and the closing.
        position = end
        while closing and not text.startswith(closing, position):
            if position == len(text) or not text[position].isspace():
                return end
            position += 1
        return position + len(closing)

    def _learn_frame(self) -> TurnFrame:
        """Render a question, alone and with an answer, and read what surrounds the answer."""
        question = {"role": "user", "content": PROBE_USER}
        answer = {"role": "assistant", "content": PROBE_ASSISTANT}
        asked = _behind(self._apply([question]), PROBE_USER)
        prompted = _behind(self._apply([question], add_generation_prompt=True), PROBE_USER)
        # Mistral's template has no generation prompt; there the end of the question is what comes before an answer.
        ends_question = asked if prompted.startswith(asked) and prompted != asked else ""
        headers = {prompted.removeprefix(ends_question)}
        dialogues = [[question, answer], [question, answer, question, answer]]
        texts = [self._apply(dialogue) for dialogue in dialogues]
        for text in texts:
            rendered = _behind(text, PROBE_USER).partition(PROBE_ASSISTANT)[0].removeprefix(ends_question)
            # A prompt that opens a think block is longer than the header of a rendered turn that has none.
            headers |= {rendered} if any(header.startswith(rendered) for header in headers) else set()
        longest_first = tuple(sorted(headers - {""}, key=len, reverse=True))
        if not longest_first:
            raise ValueError("it writes nothing between a question and its answer")
        tail = texts[0].rpartition(PROBE_ASSISTANT)[2]
        return TurnFrame(headers=longest_first, closing=self._closing(tail))

    def _closing(self, tail: str) -> str:
        """Return ``tail``, the text behind the last answer, through its first special token."""
        special = {str(token) for token in self._tokenizer.all_special_tokens}
        special |= {str(t) for t in self._tokenizer.added_tokens_decoder.values() if t.special}
        ends = [tail.find(token) + len(token) for token in special if token and token in tail]
        if not ends:
            logger.warning(
                "model '%s': its chat template closes an assistant turn with no special token; nothing teaches "
                "the model to stop",
                self._tokenizer.name_or_path,
            )
            return ""
        return tail[: min(ends)]

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        conversation: Any = list(messages)
        text = self._tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)


def _template_keys(message: Message) -> tuple[str, ...]:
    """Return the keys of ``message`` that the template gets to see."""
    if message.get("reasoning_content") is None:
        return "role", "content"
    return "role", "content", "reasoning_content"


def _free_plane(messages: Sequence[Message]) -> int:
    """Return the first code point of a private-use plane that the conversation has no character of.

    Raises:
        DataError: if there is none, or the conversation has more messages than a plane has characters.
    """
    if len(messages) > MAX_MESSAGES:
        raise DataError(f"the conversation has {len(messages)} messages, more than {MAX_MESSAGES}. Split it")
    longest = max(max(value) for message in messages for value in message.values() if value)
    if longest < chr(MARK_PLANES[0]):
        return MARK_PLANES[0]
    everything = "".join(value for message in messages for value in message.values())
    for plane in MARK_PLANES:
        if not any(plane <= ord(character) < plane + MAX_MESSAGES for character in everything):
            return plane
    raise DataError("the conversation holds characters of both private-use planes of Unicode. Remove them")


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


def _behind(text: str, word: str) -> str:
    """Return what follows the first ``word`` in ``text``; ValueError if it is not there."""
    return text[text.index(word) + len(word) :]
