"""A chunk of valid rows to tokens, which is what the worker processes of processing do.

Everything that depends on a single row happens here: it is parsed and checked once more, rendered, tokenized, cut or
dropped when it is too long, and given the key that decides its side of the split.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from transformers import PreTrainedTokenizerBase

from osft.data.chunks import Chunk
from osft.data.increments.row_hash import row_hash
from osft.data.processing.rendering import without_extra_keys
from osft.data.processing.splitting import split_key
from osft.data.processing.tokenizing import (
    ConversationEncoder,
    DocumentEncoder,
    EncodedBatch,
    ParsedRow,
    PassThroughEncoder,
    RowEncoder,
)
from osft.data.validation.json_lines import ESCAPED_NUL
from osft.data.validation.plain_rows import plain_check
from osft.data.validation.rows import IGNORED_LABEL, RowFacts, describe_problem, parse_row, row_checker
from osft.errors import DataError

# The tokenizer spreads a batch over its threads where it has some; larger ones gain nothing measurable.
BATCH_ROWS = 1_000
TRAINED_COLUMNS = {"messages": "messages", "processed": "input_ids"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingConfig:
    """How a row becomes tokens."""

    data_format: str
    """``messages``, ``processed`` or ``documents``."""

    document_column: str
    unmask_messages: bool
    max_seq_len: int
    on_too_long: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunk:
    """The rows of a chunk that are kept, and what is to be counted of all of them."""

    kept: tuple[EncodedBatch, ...]
    dropped: npt.NDArray[np.uint64]
    """``[rows, 2]``; hashes of the rows that are too long."""

    rows_in: int
    size_bytes: int
    rows_truncated: int
    too_long_lines: tuple[int, ...]
    lengths: Counter[int]
    """Tokens -> rows, before anything is dropped or cut."""


class ChunkEncoder:
    """Turns chunks of one file into tokens; goes to each worker once, where it makes its own encoder."""

    def __init__(self, path: Path, config: EncodingConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Remember what is to be encoded, and how.

        Raises:
            ConfigError: if the tokenizer does not fit the data format.
        """
        self._path = path
        self._config = config
        self._tokenizer = tokenizer
        # Made here once so that a tokenizer which does not fit is found before any row is read.
        self._encoder  # noqa: B018

    @property
    def data_format(self) -> str:
        """What the rows are: ``messages``, ``processed`` or ``documents``."""
        return self._config.data_format

    @property
    def vocab_size(self) -> int:
        """Every id is below it; more than there are tokens where the vocabulary has gaps."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @cached_property
    def _encoder(self) -> RowEncoder:
        if self._config.data_format == "processed":
            return PassThroughEncoder(self.vocab_size)
        if self._config.data_format == "documents":
            return DocumentEncoder(self._tokenizer, self._config.document_column)
        return ConversationEncoder(self._tokenizer, unmask_messages=self._config.unmask_messages)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the encoder out: compiled templates do not travel."""
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Encode the rows of ``chunk``.

        Raises:
            DataError: naming file and line, if a row is not valid, cannot be rendered, or is too long and must not be.
        """
        rows = self._parse(chunk)
        batches = []
        while batch := list(islice(rows, BATCH_ROWS)):
            try:
                batches.append(self._encoder.encode(batch))
            except DataError as error:
                raise DataError(f"{self._path}, {error}") from error
        lengths: Counter[int] = Counter()
        for encoded in batches:
            lengths.update(encoded.lengths.tolist())
        if self._config.data_format == "documents":
            fitted = [(encoded, np.empty(0, np.int64), encoded.hashes[:0]) for encoded in batches]
        else:
            fitted = [self._fit(encoded) for encoded in batches]
        return EncodedChunk(
            kept=tuple(encoded for encoded, _, _ in fitted),
            # The empty one is there for a chunk without rows.
            dropped=np.concatenate([np.empty((0, 2), np.uint64), *(hashes for _, _, hashes in fitted)]),
            rows_in=sum(len(encoded.lines) for encoded in batches),
            size_bytes=chunk.size,
            rows_truncated=sum(len(lines) - len(hashes) for _, lines, hashes in fitted),
            too_long_lines=tuple(line for _, lines, _ in fitted for line in lines.tolist()),
            lengths=lengths,
        )

    def _parse(self, chunk: Chunk) -> Iterator[ParsedRow]:
        """Yield every row of ``chunk``, which must be valid."""
        config = self._config
        check = row_checker(config.data_format, config.document_column, unmask_messages=config.unmask_messages)
        count_plain = plain_check(config.data_format, config.document_column, unmask_messages=config.unmask_messages)
        hash_row = row_hash(config.data_format, config.document_column)
        # Validation has counted; here only the verdict is of interest.
        facts = RowFacts()
        trained_column = TRAINED_COLUMNS.get(config.data_format, config.document_column)
        for number, line in enumerate(chunk.read(self._path).split(b"\n"), start=chunk.first_line):
            if not line.strip():
                continue
            row = parse_row(line)
            if isinstance(row, tuple) or ESCAPED_NUL in line or count_plain(row, facts) < 0:
                problem = row if isinstance(row, tuple) else next(check(row, RowFacts()), None)
                if isinstance(row, tuple) or problem is not None:
                    raise DataError(
                        f"{self._path}, line {number}: {describe_problem(problem)} Validate the file first."
                    )
            # The whole of what is trained, and nothing else: rows that differ in an id are duplicates still.
            trained = row[trained_column]
            if config.data_format == "messages":
                trained = [without_extra_keys(message) for message in trained]
            content = orjson.dumps(trained, option=orjson.OPT_SORT_KEYS)
            yield ParsedRow(line=number, fields=row, key=split_key(content, config.seed), hash=hash_row(row))

    def _fit(self, batch: EncodedBatch) -> tuple[EncodedBatch, np.ndarray, np.ndarray]:
        """Return the rows that are short enough or were cut, the lines that were not, and the hashes of the dropped.

        Raises:
            DataError: if a row is too long and ``on_too_long`` is ``fail``.
        """
        limit = self._config.max_seq_len
        too_long = np.flatnonzero(batch.lengths > limit)
        if not len(too_long):
            return batch, too_long, batch.hashes[:0]
        if self._config.on_too_long == "fail":
            row = too_long[0]
            raise DataError(
                f"{self._path}, line {batch.lines[row]}: the row has {batch.lengths[row]} tokens, more than "
                f"max_seq_len {limit}. Raise max_seq_len, or choose on_too_long drop or truncate."
            )
        lengths = batch.lengths.copy()
        lengths[too_long] = 0
        starts = np.cumsum(batch.lengths) - batch.lengths
        if self._config.on_too_long == "truncate":
            for row in too_long:
                # What is left may be the question only.
                if (batch.labels[starts[row] + 1 : starts[row] + limit] != IGNORED_LABEL).any():
                    lengths[row] = limit
        return cut_rows(batch, lengths), batch.lines[too_long], batch.hashes[lengths == 0]


def cut_rows(batch: EncodedBatch, lengths: np.ndarray) -> EncodedBatch:
    """Return ``batch`` with each row cut to the first of ``lengths`` (``[rows]``) tokens; 0 leaves the row out."""
    starts = np.cumsum(batch.lengths) - batch.lengths
    position = np.arange(len(batch.input_ids)) - np.repeat(starts, batch.lengths)
    kept = position < np.repeat(lengths, batch.lengths)
    rows = lengths > 0
    return replace(
        batch,
        lines=batch.lines[rows],
        keys=batch.keys[rows],
        hashes=batch.hashes[rows],
        lengths=lengths[rows],
        input_ids=batch.input_ids[kept],
        labels=batch.labels[kept],
    )
