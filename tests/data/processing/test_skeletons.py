from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.processing.chat_template import ChatTemplate, Message
from osft.data.processing.skeletons import MAX_MESSAGES, Skeletons
from osft.data.processing.tokenizing import load_tokenizer

TEXTS = st.text(st.sampled_from("Fe \n\v鉄"), min_size=1, max_size=8).filter(lambda text: not text.isspace())


class CountingTemplate:
    """A family's template that counts its renderings."""

    def __init__(self, folder: str) -> None:
        self._template = ChatTemplate(load_tokenizer(folder))
        self.renderings = 0

    def render(self, messages: Sequence[Message]) -> str:
        self.renderings += 1
        return self._template.render([messages])[0]


@pytest.mark.parametrize("name", ["CHATML", "CHATML_DEFAULT_SYSTEM", "LLAMA3", "MISTRAL", "GEMMA", "PHI3", "QWEN3"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(TEXTS, min_size=2, max_size=5))
def test_a_skeleton_says_where_each_content_ends(
    tokenizer_folder: Callable[..., str],
    conversation: Callable[..., dict[str, Any]],
    name: str,
    contents: list[str],
) -> None:
    template = CountingTemplate(tokenizer_folder(name))
    messages = conversation(*contents)["messages"]
    text = template.render(messages)

    ends = Skeletons(template.render).predict(messages, text)

    # Qwen3's template strips line breaks of the last answer, which no skeleton knows of.
    assert ends is not None or (name == "QWEN3" and contents[-1].startswith("\n"))
    for content, end in zip(contents, ends or [], strict=ends is not None):
        assert text[:end].endswith(content.strip())


def test_a_shape_is_learnt_once(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    template = CountingTemplate(tokenizer_folder("CHATML"))
    skeletons = Skeletons(template.render)
    rows = [conversation("Iron?", "Fe.")["messages"], conversation("France?", "Paris.")["messages"]]
    texts = [template.render(messages) for messages in rows]

    ends = [skeletons.predict(messages, text) for messages, text in zip(rows, texts, strict=True)]

    assert template.renderings == len(rows) + 1
    assert [text[: end[1]][-3:] for text, end in zip(texts, ends, strict=True) if end and end[1]] == ["Fe.", "is."]


def test_nothing_is_predicted_for_a_text_that_is_not_the_skeleton_s(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    template = CountingTemplate(tokenizer_folder("CHATML"))
    skeletons = Skeletons(template.render)
    messages = conversation("Iron?", "Fe.")["messages"]

    assert skeletons.predict(messages, template.render(messages) + "!") is None


def test_nothing_is_predicted_for_the_longest_conversations_or_a_template_that_refuses_the_probe(
    tokenizer_folder: Callable[..., str], conversation: Callable[..., dict[str, Any]]
) -> None:
    messages = conversation(*["Iron?", "Fe."] * MAX_MESSAGES)["messages"]

    def refuse(messages: Sequence[Message]) -> str:
        raise ValueError("no vertical tabs")

    assert Skeletons(refuse).predict(messages, "text") is None
    assert Skeletons(refuse).predict(messages[:2], "text") is None
