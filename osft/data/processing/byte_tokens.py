"""Where the tokens of a byte-level tokenizer lie in a text, without the offsets of the tokenizers library.

The library encodes a fifth faster when it need not keep offsets. In a byte-level vocabulary (of GPT-2, and since then
of Llama 3, Qwen, Granite, Phi) each token spells fixed bytes. Where the bytes of a text's tokens, one behind the
other, are those of the text, their lengths say where each token lies. Whatever changes a text on its way (a
normalizer, an added token that takes white space with it) shows as a difference; such a text needs the offsets.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

Integers = npt.NDArray[np.int64]
Range = tuple[int, int]


def find_spellings(tokenizer: PreTrainedTokenizerBase) -> "Spellings | None":
    """Return the bytes that each id spells, or ``None`` if the tokenizer is not a byte-level one."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    added = tokenizer.added_tokens_decoder
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    spellings = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        is_text = token_id in added or not byte_of.keys() >= set(token)
        spellings[token_id] = token.encode() if is_text else bytes([byte_of[character] for character in token])
    return Spellings(spellings)


class Spellings:
    """The bytes of every token of a vocabulary, for batches of rows at once."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        """Keep ``spellings``, one for each id."""
        self._bytes = np.frombuffer(b"".join(spellings), dtype=np.uint8)
        self._sizes = np.array([len(spelling) for spelling in spellings], dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def find_ranges(
        self, rows: Sequence[Sequence[int]], texts: Sequence[str], spans: Sequence[Sequence[Range]]
    ) -> list[tuple[Integers, list[Range] | None]]:
        """Return the ids of each row as an array, and where its spans lie among its tokens.

        Args:
            rows: ids of each text.
            texts: as many.
            spans: of each text: first character and the one behind the last, in order, without overlap.

        Returns:
            For each row ``[tokens]``, and for each of its spans that is not empty the first token that covers one of
            its characters and the one behind the last; ``None`` if the row's tokens do not spell its text.
        """
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(map(len, rows)))
        sizes = self._sizes[ids]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        spelled = self._bytes[np.repeat(self._starts[ids] - ends[:-1], sizes) + np.arange(ends[-1])].tobytes()
        # Where each row's tokens start among all, and where its bytes do.
        first_tokens = np.cumsum([0, *map(len, rows)])
        first_bytes = ends[first_tokens].tolist()
        places: list[list[Range] | None] = []
        for text, its_spans, start, end in zip(texts, spans, first_bytes[:-1], first_bytes[1:], strict=True):
            raw = text.encode()
            is_spelled = len(raw) == end - start and spelled.startswith(raw, start)
            places.append(_in_bytes(text, its_spans, start, is_ascii=len(raw) == len(text)) if is_spelled else None)
        # A token starts where the one before it ends.
        bounds = np.array([bound for row in places if row for span in row for bound in span], dtype=np.int64)
        firsts = iter(np.searchsorted(ends[1:], bounds[::2], side="right").tolist())
        lasts = iter((np.searchsorted(ends[1:], bounds[1::2], side="left") + 1).tolist())
        return [
            (ids[first:last], None if row is None else [(next(firsts) - first, next(lasts) - first) for _ in row])
            for row, (first, last) in zip(places, pairwise(first_tokens.tolist()), strict=True)
        ]


def _in_bytes(text: str, spans: Sequence[Range], offset: int, *, is_ascii: bool) -> list[Range]:
    """Return spans of characters that are not empty as spans of bytes, ``offset`` added."""
    if is_ascii:
        return [(offset + start, offset + end) for start, end in spans if start < end]
    return [
        (offset + len(text[:start].encode()), offset + len(text[:end].encode())) for start, end in spans if start < end
    ]
