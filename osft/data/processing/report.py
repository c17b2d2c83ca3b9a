"""What processing is asked to do, what it counts as it goes, and what it reports."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from osft.data.processing.encoding import EncodedChunk
from osft.data.processing.splitting import LengthReport, SplitReport, describe_lengths, length_histogram
from osft.data.validation.conversions import SHAPES
from osft.errors import ConfigError, DataError
from osft.workspace import read_json

OnTooLong = Literal["drop", "truncate", "fail"]
DATA_FORMATS = ("auto", *SHAPES)
MAX_REPORTED_LINES = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessingConfig:
    """How rows become tokens.

    Raises:
        ConfigError: if a value is not allowed; the message names the parameter, the value and what is allowed.
    """

    model: str
    """Folder or Hugging Face id whose tokenizer is used."""

    max_seq_len: int
    """Longest row in tokens."""

    data_format: str = "messages"
    """What validation was asked for; the valid rows of ``sharegpt`` and the like are messages. ``auto`` looks."""

    unmask_messages: bool = False
    """Train everything but system messages, in every row."""

    holdout_fraction: float = 0.1
    """Expected share of held-out rows, 0 up to but not including 1; 0 writes an empty ``holdout.parquet``."""

    on_too_long: str = "drop"
    """What happens to a row beyond :attr:`max_seq_len`: ``drop``, ``truncate`` or ``fail``."""

    seed: int = 42
    """Seed of the split."""

    block_size: int | None = None
    """Tokens of a block of documents; other formats have no blocks."""

    document_column: str = "document"
    """With ``documents``, the column that holds the text."""

    def __post_init__(self) -> None:
        if self.data_format not in DATA_FORMATS:
            raise ConfigError(f"data_format is '{self.data_format}'; allowed are {', '.join(DATA_FORMATS)}.")
        if not self.model:
            raise ConfigError("model is empty; give a folder or a Hugging Face id.")
        if self.max_seq_len < 1:
            raise ConfigError(f"max_seq_len is {self.max_seq_len}; allowed is a whole number from 1.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ConfigError(f"holdout_fraction is {self.holdout_fraction}; allowed is 0 up to, not including, 1.")
        if self.on_too_long not in get_args(OnTooLong):
            raise ConfigError(f"on_too_long is '{self.on_too_long}'; allowed are {', '.join(get_args(OnTooLong))}.")
        if self.data_format == "documents":
            self.check_block_size()

    def check_block_size(self) -> None:
        """Refuse a block size that documents cannot be cut into.

        Raises:
            ConfigError: if it is missing, or no row could be as long.
        """
        if self.block_size is None:
            raise ConfigError("block_size is missing; data_format documents needs the tokens of a block.")
        if not 2 <= self.block_size <= self.max_seq_len:
            raise ConfigError(f"block_size is {self.block_size}; allowed is 2 to max_seq_len, {self.max_seq_len}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessingReport:
    """What processing did; saved as ``processing.json``."""

    config: ProcessingConfig
    output_format: str
    """What the valid rows are: ``messages``, ``processed`` or ``documents``."""

    rows_in: int
    """Rows of the source; with documents, documents."""

    rows_train: int
    """Rows of ``train.parquet``; with documents, blocks."""

    rows_holdout: int
    rows_dropped_too_long: int
    """Without documents, ``rows_in`` is the sum of this, :attr:`rows_train` and :attr:`rows_holdout`."""

    rows_truncated: int
    too_long_lines: tuple[int, ...]
    """The first lines that were dropped or truncated, from 1."""

    train: SplitReport
    holdout: SplitReport
    lengths: LengthReport
    """In tokens, before anything is dropped or cut."""

    length_histogram: dict[str, int]
    """Upper bound in tokens, a power of two -> rows; the same rows as :attr:`lengths`."""

    messages_not_rendered: int
    """System and user messages that the chat template leaves out."""

    reasoning_not_rendered: int
    """Assistant turns whose reasoning the chat template leaves out."""

    rows_with_control_text: int
    """Rows in which a message spells out a special token of the tokenizer; it is kept as text."""

    key: str
    """Hash of the rows, the tokenizer and the options."""

    @classmethod
    def load(cls, path: Path) -> "ProcessingReport":
        """Read a report back.

        Raises:
            DataError: if it is not one of this version.
        """
        try:
            fields = read_json(path)
            return cls(
                config=ProcessingConfig(**fields.pop("config")),
                too_long_lines=tuple(fields.pop("too_long_lines")),
                train=SplitReport(**fields.pop("train")),
                holdout=SplitReport(**fields.pop("holdout")),
                lengths=LengthReport(**fields.pop("lengths")),
                **fields,
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: no report of processing ({error}). Process the data again.") from error


@dataclass(slots=True)
class Tally:
    """The counts of one pass, while chunks come in."""

    rows_in: int = 0
    dropped: int = 0
    truncated: int = 0
    too_long_lines: list[int] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    messages_not_rendered: int = 0
    reasoning_not_rendered: int = 0
    rows_with_control_text: int = 0
    keys: set[int] = field(default_factory=set)
    """The smallest and the largest key of the rows that were kept."""

    def add(self, chunk: EncodedChunk) -> None:
        """Count the rows of ``chunk``."""
        self.rows_in += chunk.rows_in
        self.dropped += len(chunk.dropped)
        self.truncated += chunk.rows_truncated
        self.too_long_lines.extend(chunk.too_long_lines[: MAX_REPORTED_LINES - len(self.too_long_lines)])
        self.lengths.update(chunk.lengths)
        for batch in chunk.kept:
            self.messages_not_rendered += batch.messages_not_rendered
            self.reasoning_not_rendered += batch.reasoning_not_rendered
            self.rows_with_control_text += batch.rows_with_control_text
            if len(batch.keys):
                keys = self.keys | {int(batch.keys.min()), int(batch.keys.max())}
                self.keys = {min(keys), max(keys)}

    def report(
        self, config: ProcessingConfig, output_format: str, sides: tuple[SplitReport, SplitReport], key: str
    ) -> ProcessingReport:
        """Return the counts as a report; ``sides`` are the rows to train on and the held-out ones."""
        train, holdout = sides
        return ProcessingReport(
            config=config,
            output_format=output_format,
            rows_in=self.rows_in,
            rows_train=train.rows,
            rows_holdout=holdout.rows,
            rows_dropped_too_long=self.dropped,
            rows_truncated=self.truncated,
            too_long_lines=tuple(self.too_long_lines),
            train=train,
            holdout=holdout,
            lengths=describe_lengths(self.lengths),
            length_histogram=length_histogram(self.lengths),
            messages_not_rendered=self.messages_not_rendered,
            reasoning_not_rendered=self.reasoning_not_rendered,
            rows_with_control_text=self.rows_with_control_text,
            key=key,
        )
