"""Control tokens that a text spells out, such as ``<|im_end|>`` typed by a user: kept as text, never encoded as tokens.

A fast tokenizer looks for its special tokens in the whole text and cannot tell the template's own from typed ones. So
each special token has a stand-in, one private-use character that the row does not hold. In the messages a typed token
is replaced by its stand-in before the template sees it; what is left of special tokens in the rendered text is the
template's own. Then both change places: typed tokens are spelled out again, the template's become stand-ins, and a
copy of the tokenizer encodes the text whose special tokens are called by their stand-ins. All else of the tokenizer
(normalizer, prefix spaces, white space around tokens, added tokens that are not special) is as it was, and each
encoding is checked: a special id only where the template put one.

transformers 5 has a way of its own (``sanitize_control_tokens``). It encodes the pieces of a text one by one, so that
typed tokens cost prefix spaces, and it gives neither offsets nor masks.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import orjson
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from osft.errors import DataError, one_line

# Two planes that Unicode keeps for private use. A row with characters of one gets stand-ins from the other.
PRIVATE_PLANES = (0xF0000, 0x100000)
PLANE_CHARACTERS = 0x10000
# The first half of a plane is for the marks of the rendering, the second for special tokens; the last two code points
# are no characters.
FIRST_STAND_IN = 0x8000
MAX_SPECIAL_TOKENS = PLANE_CHARACTERS - FIRST_STAND_IN - 2


def free_plane(texts: Sequence[str]) -> int:
    """Return the first code point of a private-use plane that ``texts`` have no character of.

    Raises:
        DataError: if there is none.
    """
    if max(map(max, filter(None, texts)), default="") < chr(PRIVATE_PLANES[0]):
        return PRIVATE_PLANES[0]
    everything = "".join(texts)
    for plane in PRIVATE_PLANES:
        if not re.search(f"[{chr(plane)}-{chr(plane + PLANE_CHARACTERS - 1)}]", everything):
            return plane
    raise DataError("the row holds characters of both private-use planes of Unicode. Remove them")


class ControlText:
    """Keeps the special tokens that a row spells out apart from those of the template, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Collect the special tokens."""
        self._backend = tokenizer.backend_tokenizer
        self._tokens = _special_tokens(tokenizer)
        self._typed = re.compile(_any_of(self._tokens)) if self._tokens else None
        added = tokenizer.added_tokens_decoder.values()
        # A normalizer makes such tokens of other spellings too: full-width or upper-case letters.
        self._normalizer = self._backend.normalizer if any(token.normalized for token in added) else None
        self._indices = {token: index for index, token in enumerate(self._tokens)}
        self._renamed: dict[int, _RenamedTokenizer] = {}

    def occurs_in(self, text: str) -> bool:
        """Say whether ``text`` spells out a special token, as it is or once the tokenizer has normalized it."""
        if self._typed is None:
            return False
        if self._typed.search(text) is not None:
            return True
        return self._normalizer is not None and self._typed.search(self._normalizer.normalize_str(text)) is not None

    def escape(self, text: str, plane: int) -> str:
        """Return ``text`` with stand-ins for the special tokens that it spells out."""
        if self._typed is None:
            return text
        return self._typed.sub(lambda match: self._stand_in(match.group(), plane), text)

    def swap(self, text: str, plane: int) -> str:
        """Spell out the stand-ins in ``text``, and put stand-ins for the special tokens that it has."""
        if self._typed is None:
            return text
        first = plane + FIRST_STAND_IN
        stand_ins = f"[{chr(first)}-{chr(first + min(len(self._tokens), MAX_SPECIAL_TOKENS) - 1)}]"
        pieces = re.split(f"({stand_ins})", text)
        pieces[::2] = [self.escape(piece, plane) for piece in pieces[::2]]
        pieces[1::2] = [self._tokens[ord(stand_in) - first] for stand_in in pieces[1::2]]
        return "".join(pieces)

    def encode(self, text: str, plane: int) -> tuple[list[int], Encoding]:
        """Encode a text from :meth:`swap`, or one that is content as a whole.

        Returns:
            The ids of the tokenizer itself, and the encoding, whose offsets are characters of ``text``.

        Raises:
            DataError: if the tokenizer cannot be changed so, or takes text for a special token nevertheless.
        """
        if plane not in self._renamed:
            stand_ins = {token: self._stand_in(token, plane) for token in self._tokens}
            self._renamed[plane] = _RenamedTokenizer(self._backend, stand_ins)
        return self._renamed[plane].encode(text)

    def _stand_in(self, token: str, plane: int) -> str:
        index = self._indices[token]
        if index >= MAX_SPECIAL_TOKENS:
            raise DataError(f"the row spells out '{token}', one of too many special tokens to keep apart. Remove it")
        return chr(plane + FIRST_STAND_IN + index)


class _RenamedTokenizer:
    """A copy of a tokenizer whose special tokens have other names."""

    def __init__(self, backend: Tokenizer, stand_ins: Mapping[str, str]) -> None:
        """Make the copy from the tokenizer's JSON.

        Args:
            backend: the tokenizer.
            stand_ins: from the name of each special token to its new one.

        Raises:
            DataError: if the tokenizer cannot be written as JSON, or its copy cannot be read.
        """
        try:
            if taken := [name for name in stand_ins.values() if backend.token_to_id(name) is not None]:
                raise ValueError(f"it has the private-use token U+{ord(taken[0]):X}")
            spec = orjson.loads(backend.to_str())
            unknown = _unknown_token(spec["model"])
            _rename(spec, stand_ins)
            self._backend = Tokenizer.from_str(orjson.dumps(spec).decode())
        # The tokenizers library raises nothing narrower.
        except Exception as error:
            raise DataError(
                "the row spells out special tokens, and the tokenizer cannot be changed to read them as text "
                f"({one_line(error)}). Remove them from the texts"
            ) from error
        self._own_ids = {}
        self._special: dict[int, str] = {}
        for token in spec["added_tokens"]:
            # An added token that is not in the model's vocabulary may get another number in the copy.
            self._own_ids[self._backend.token_to_id(token["content"])] = token["id"]
            if token["content"] in stand_ins.values():
                self._special[token["id"]] = token["content"]
        # Text may hold what no other token can spell.
        self._unknown_id = backend.token_to_id(unknown) if unknown else None

    def encode(self, text: str) -> tuple[list[int], Encoding]:
        """Return the ids that the tokenizer itself has for the tokens of ``text``, and the encoding.

        Raises:
            DataError: if a special token comes from anything but its stand-in.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = [self._own_ids.get(token_id, token_id) for token_id in encoding.ids]
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            stand_in = self._special.get(token_id, "")
            if stand_in not in text[start:end] and token_id != self._unknown_id:
                raise DataError(
                    f"the tokenizer takes the text {text[start:end]!r} for a special token. Remove it from the texts"
                )
        return ids, encoding


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the special tokens by their ids."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    named = set(tokenizer.all_special_tokens)
    return tuple(token.content for _, token in added if token.special or token.content in named)


def _any_of(tokens: Sequence[str]) -> str:
    """Return a regular expression for ``tokens``; of two that begin alike it finds the longer, as tokenizers do.

    It branches where tokens differ: some tokenizers have a thousand that begin alike, and HTML is full of beginnings.
    """
    branches = [
        re.escape(first) + _any_of([token[1:] for token in group])
        for first, group in groupby(sorted(set(tokens)), key=lambda token: token[:1])
        if first
    ]
    if "" in tokens:
        return f"(?:{'|'.join(branches)})?" if branches else ""
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the token that stands for what the model has no token for."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _rename(spec: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give the special tokens in a tokenizer's JSON other names, in place.

    The model's own vocabulary too: a Unigram model finds ``</s>`` in a text by itself.
    """
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        # Neither side nor what both become may be a special token.
        model["merges"] = [pair for pair in model["merges"] if names.keys().isdisjoint((*pair, "".join(pair)))]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
