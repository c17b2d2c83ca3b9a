"""A guess at how a chat template renders a conversation, so that its contents can be found without a second rendering.

Most templates put the contents, as they are or stripped, between texts that follow from the roles alone. One
conversation of the same roles with known words as contents gives those texts: the skeleton. Filled with the contents
of a row it predicts the row's text. Only a prediction that is equal to the text, character by character, is used, so
that a wrong skeleton costs time and never a label.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from osft.data.processing.chat_template import TEMPLATE_ERRORS, Message

# Roles, and whether the message has reasoning.
Shape = tuple[tuple[str, bool], ...]
# Skeletons that are kept; data with more shapes than this gains nothing from them.
MAX_SKELETONS = 1_000
MAX_MESSAGES = 256
# Contents of the probe: words that no template looks for, between white space that templates strip but do not write.
EDGE = "\v"
KEYS = {"content": "content", "reasoning": "reasoning_content"}
SLOT = re.compile(f"({EDGE}?)osft(content|reasoning)([0-9]+)x({EDGE}?)")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a template writes one value of one message."""

    message: int
    key: str
    strips_left: bool
    strips_right: bool


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A rendered conversation without its contents: text, slot, text, slot, ..., text."""

    texts: tuple[str, ...]
    slots: tuple[Slot, ...]

    def fill(self, messages: Sequence[Message]) -> tuple[str, list[int | None]]:
        """Return the text with the values of ``messages``, and where each content ends.

        An end is the index behind the content's last character that is not white space, ``None`` for a content that
        is not rendered.
        """
        pieces = [self.texts[0]]
        length = len(self.texts[0])
        ends: list[int | None] = [None] * len(messages)
        for slot, text in zip(self.slots, self.texts[1:], strict=True):
            value = messages[slot.message][slot.key]
            stripped = value.rstrip()
            value = stripped if slot.strips_right else value
            if slot.strips_left:
                value, stripped = value.lstrip(), stripped.lstrip()
            if slot.key == "content" and ends[slot.message] is None:
                ends[slot.message] = length + len(stripped)
            pieces += value, text
            length += len(value) + len(text)
        return "".join(pieces), ends


class Skeletons:
    """The skeletons of one template, learnt as shapes of conversations come along."""

    def __init__(self, render: Callable[[Sequence[Message]], str]) -> None:
        """Remember how to render."""
        self._render = render
        self._known: dict[Shape, Skeleton] = {}

    def predict(self, messages: Sequence[Message], text: str) -> list[int | None] | None:
        """Return where the contents end in ``text``, or ``None`` if its skeleton does not give that text."""
        shape = tuple([(message["role"], "reasoning_content" in message) for message in messages])
        if shape not in self._known:
            if len(messages) > MAX_MESSAGES or len(self._known) >= MAX_SKELETONS:
                return None
            self._known[shape] = self._learn(shape)
        predicted, ends = self._known[shape].fill(messages)
        return ends if predicted == text else None

    def _learn(self, shape: Shape) -> Skeleton:
        """Render words in the shape and cut the text at the words."""
        probe = []
        for index, (role, has_reasoning) in enumerate(shape):
            message = {"role": role, "content": f"{EDGE}osftcontent{index}x{EDGE}"}
            if has_reasoning:
                message["reasoning_content"] = f"{EDGE}osftreasoning{index}x{EDGE}"
            probe.append(message)
        try:
            pieces = SLOT.split(self._render(probe))
        except TEMPLATE_ERRORS:
            # It rendered the row, so it looks into contents: nothing can be predicted.
            return Skeleton(texts=("",), slots=())
        slots = [
            Slot(message=int(number), key=KEYS[word], strips_left=not left, strips_right=not right)
            for left, word, number, right in zip(pieces[1::5], pieces[2::5], pieces[3::5], pieces[4::5], strict=True)
        ]
        return Skeleton(texts=tuple(pieces[::5]), slots=tuple(slots))
