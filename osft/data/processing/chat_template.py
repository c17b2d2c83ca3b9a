"""The chat template of a tokenizer: the text that it makes of conversations, and how it frames the model's turns."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from osft.errors import ConfigError, one_line

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
Span = tuple[int, int]
"""Index of the first character, and of the one behind the last."""
# A template is a small program; these are the ways in which one fails on a conversation it was not written for.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# Contents of the probe: one word that no template looks for.
PROBE_USER, PROBE_ASSISTANT = "osftquestion", "osftanswer"
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class TurnFrame:
    """What a template writes around an assistant's content, learnt from the template itself."""

    headers: tuple[str, ...]
    """Texts after which the model's own turn starts, the generation prompt first."""

    closing: str
    """From the end of the content through the token that closes the turn; empty if none does."""


class ChatTemplate:
    """Renders conversations as the tokenizer's ``apply_chat_template`` does."""

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
        self._source = tokenizer.get_chat_template()
        self.has_generation_blocks = GENERATION_BLOCK.search(self._source) is not None
        try:
            self.frame = self._learn_frame()
        except TEMPLATE_ERRORS as error:
            raise ConfigError(
                f"model '{tokenizer.name_or_path}': its chat template cannot render a user and an assistant message "
                f"({one_line(error)}). Use a model with a working template."
            ) from error

    def render(self, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool = False) -> list[str]:
        """Return the template's text for each conversation; what the template raises passes through."""
        if not conversations:
            return []
        chats: Any = list(conversations)
        texts: Any = self._tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return list(texts)

    def render_with_spans(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[str, list[Span]]]:
        """Return the template's text for each conversation, and the spans of its generation blocks."""
        if not self.has_generation_blocks:
            return [(text, []) for text in self.render(conversations)]
        chats: Any = list(conversations)
        # As apply_chat_template passes them.
        special_tokens: dict[str, Any] = self._tokenizer.special_tokens_map
        rendered: Any = render_jinja_template(
            chats, chat_template=self._source, return_assistant_tokens_mask=True, **special_tokens
        )
        return list(zip(*rendered, strict=True))

    def _learn_frame(self) -> TurnFrame:
        """Render a question, alone and with an answer, and read what surrounds the answer."""
        question = {"role": "user", "content": PROBE_USER}
        answer = {"role": "assistant", "content": PROBE_ASSISTANT}
        (answered, generated), (twice, _) = self.render_with_spans([[question, answer], [question, answer] * 2])
        closing = self._closing(answered.rpartition(PROBE_ASSISTANT)[2])
        if self.has_generation_blocks:
            self._check_generation_blocks(answered, generated, closing)
            return TurnFrame(headers=(), closing=closing)
        asked = _behind(self.render([[question]])[0], PROBE_USER)
        prompted = _behind(self.render([[question]], add_generation_prompt=True)[0], PROBE_USER)
        # Mistral's template has no generation prompt; there the end of the question is what comes before an answer.
        ends_question = asked if prompted.startswith(asked) and prompted != asked else ""
        headers = {prompted.removeprefix(ends_question)}
        for text in (answered, twice):
            rendered = _behind(text, PROBE_USER).partition(PROBE_ASSISTANT)[0].removeprefix(ends_question)
            # A prompt that opens a think block is longer than the header of a rendered turn that has none.
            headers |= {rendered} if any(header.startswith(rendered) for header in headers) else set()
        longest_first = tuple(sorted(headers - {""}, key=len, reverse=True))
        if not longest_first:
            raise ValueError("it writes nothing between a question and its answer")
        return TurnFrame(headers=longest_first, closing=closing)

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

    def _check_generation_blocks(self, text: str, generated: Sequence[Span], closing: str) -> None:
        """Warn if the token that closes a turn is not trained."""
        end = text.rindex(PROBE_ASSISTANT) + len(PROBE_ASSISTANT) + len(closing)
        if closing and not any(start < end <= stop for start, stop in generated):
            logger.warning(
                "model '%s': the generation blocks of its chat template leave out '%s', which closes a turn; nothing "
                "teaches the model to stop",
                self._tokenizer.name_or_path,
                closing.strip(),
            )


def _behind(text: str, word: str) -> str:
    """Return what follows the first ``word`` in ``text``; ValueError if it is not there."""
    return text[text.index(word) + len(word) :]
