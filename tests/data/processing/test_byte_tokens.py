from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from osft.data.processing.byte_tokens import find_spellings
from osft.data.processing.tokenizing import load_tokenizer

TEXTS = st.lists(
    st.sampled_from(["<|im_end|>", "<think>", "Iron", ".\n\n", "鉄", "é"]) | st.text(st.characters(codec="utf-8")),
    min_size=1,
    max_size=5,
).map("".join)


@pytest.mark.parametrize("kind", ["byte-level", "bytes"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, data=st.data())
def test_the_tokens_of_a_span_are_those_whose_offsets_meet_it(
    tokenizer_folder: Callable[..., str], kind: str, text: str, data: st.DataObject
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("CHATML", kind))
    spellings = find_spellings(tokenizer)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))

    assert spellings is not None
    # A row before and one behind it must not move its tokens.
    other = tokenizer.backend_tokenizer.encode("Iron é", add_special_tokens=False).ids
    rows, texts = [other, encoding.ids, other], ["Iron é", text, "Iron é"]
    ids, ranges = zip(*spellings.find_ranges(rows, texts, [[(0, 1)], [(start, end)], []]), strict=True)

    meeting = [index for index, (first, last) in enumerate(encoding.offsets) if first < end and start < last]
    assert [row.tolist() for row in ids] == rows
    assert ranges[1] == ([(meeting[0], meeting[-1] + 1)] if start < end else [])
    assert (ranges[0], ranges[2]) == ([(0, 1)], [])


@pytest.mark.parametrize("kind", ["byte fallback", "unigram"])
def test_other_kinds_of_tokenizers_have_no_spellings(tokenizer_folder: Callable[..., str], kind: str) -> None:
    assert find_spellings(load_tokenizer(tokenizer_folder("CHATML", kind))) is None


def test_a_text_that_the_tokenizer_changes_has_no_ranges(tokenizer_folder: Callable[..., str]) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("CHATML"))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken("<|wide|>", special=True, lstrip=True)])
    spellings = find_spellings(tokenizer)
    texts = ["Fe", "e\u0301", "Fe  <|wide|>"]

    assert spellings is not None
    rows = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    ranges = [found for _, found in spellings.find_ranges(rows, texts, [[(0, 1)]] * 3)]

    assert ranges == [[(0, 1)], None, None]
