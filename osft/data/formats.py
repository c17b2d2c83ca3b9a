"""A data file to JSON Lines: which formats are known by their suffix, and how each is read in bounded memory.

Lines of a JSON Lines file are copied byte for byte, malformed ones too: validation reports them with their number,
which it could not if they were mended or dropped here.
"""

import csv
import gzip
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import zstandard

from osft.data.progress import RowProgress
from osft.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
COMPRESSIONS = (".gz", ".zst")
ALLOWED_SUFFIXES = f"{', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"
CHUNK_BYTES = 1 << 20
# Small, because what is left of it is copied once an element.
ARRAY_CHUNK_CHARACTERS = 1 << 16
BATCH_ROWS = 1_000
# Arrow reads a CSV file in blocks, and a row must fit into one.
CSV_BLOCK_BYTES = 1 << 26
# The columns of the data formats whose values are not text.
JSON_COLUMNS = ("messages", "unmask", "input_ids", "labels")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RowSink:
    """Where rows go: counts them, and hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        """Write to ``file``."""
        self._file = file
        self._digest = hashlib.sha256()
        self.progress = RowProgress(logger, "downloaded")

    @property
    def sha256(self) -> str:
        """The hash of everything written so far."""
        return self._digest.hexdigest()

    def write_line(self, line: bytes) -> None:
        """Append one line; a newline is added if it has none."""
        line = line if line.endswith(b"\n") else line + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self.progress.advance(0 if line.isspace() else 1, len(line))


def split_suffix(name: str) -> tuple[str, str]:
    """Return format and compression of a file's name, both with their dot, the compression empty if there is none.

    Raises:
        ConfigError: if the suffix is not known.
    """
    if not is_known(name):
        raise ConfigError(f"'{name}': the format is not known by its suffix. Allowed are {ALLOWED_SUFFIXES}.")
    path = Path(name.lower())
    if path.suffix in COMPRESSIONS:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def is_known(name: str) -> bool:
    """Return whether a file's name ends in a known suffix."""
    return re.search(r"\.(jsonl|json|parquet|csv)(\.gz|\.zst)?$", name, re.IGNORECASE) is not None


def copy_rows(path: Path, name: str, sink: RowSink, scratch: Path) -> None:
    """Append the rows of the file at ``path`` to ``sink``.

    Args:
        path: the file's bytes.
        name: the file's own name, which gives the format and stands in errors.
        sink: where the rows go.
        scratch: folder for a decompressed copy, removed again.

    Raises:
        ConfigError: if the suffix is not known.
        DataError: if the file is not what its suffix says.
    """
    kind, compression = split_suffix(name)
    if compression:
        plain = scratch / f"plain{kind}"
        _decompress(path, plain, name, compression)
        copy_rows(plain, Path(name).name.removesuffix(name[-len(compression) :]), sink, scratch)
        plain.unlink()
    elif kind == ".jsonl":
        _copy_lines(path, sink)
    elif kind == ".json":
        _copy_json(path, name, sink)
    else:
        write_rows(_read_parquet(path, name) if kind == ".parquet" else _read_csv(path, name), name, sink)


def write_rows(rows: Iterable[dict[str, Any]], name: str, sink: RowSink) -> None:
    """Append every row as a JSON object.

    Raises:
        DataError: if a value has no JSON form, such as binary data.
    """
    for number, row in enumerate(rows, start=1):
        try:
            sink.write_line(orjson.dumps(row))
        except TypeError as error:
            raise DataError(
                f"{name}: row {number} holds a value that JSON cannot ({error}). Drop that column."
            ) from error


def _decompress(source: Path, target: Path, name: str, compression: str) -> None:
    """Write the decompressed bytes of ``source`` to ``target``; a file that breaks off is an error."""
    try:
        with source.open("rb") as packed, target.open("wb") as plain:
            if compression == ".gz":
                with gzip.GzipFile(fileobj=packed) as unpacked:
                    shutil.copyfileobj(unpacked, plain, CHUNK_BYTES)
            else:
                _decompress_zstandard(packed, plain)
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError, OSError) as error:
        raise DataError(
            f"{name}: the {compression} file is damaged or cut off ({error}). Fetch or pack it again."
        ) from error


def _decompress_zstandard(packed: IO[bytes], plain: IO[bytes]) -> None:
    """Decompress every frame; the library's own reader stops after the first and takes a cut one for its end."""
    frame = None
    while chunk := packed.read(CHUNK_BYTES):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            plain.write(frame.decompress(chunk))
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")


def _copy_lines(path: Path, sink: RowSink) -> None:
    with path.open("rb") as lines:
        for line in lines:
            sink.write_line(line)


def _copy_json(path: Path, name: str, sink: RowSink) -> None:
    """Copy the elements of a top-level array, or the lines of a file that holds none."""
    with path.open("rb") as file:
        start = file.read(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    if not start.startswith(b"["):
        _copy_lines(path, sink)
        return
    for number, element in enumerate(_array_elements(path, name), start=1):
        try:
            sink.write_line(orjson.dumps(orjson.loads(element)))
        except orjson.JSONDecodeError as error:
            raise DataError(f"{name}: element {number} is not JSON ({error.msg}). Mend the file.") from error


def _array_elements(path: Path, name: str) -> Iterator[str]:
    """Yield the text of each element of a JSON array, holding about one element in memory."""
    decoder = json.JSONDecoder()
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = _skip_space(_skip_space("", file)[1:], file)
            while not text.startswith("]"):
                number += 1
                end, text = _element_end(decoder, text, file)
                yield text[:end]
                text = _after_comma(_skip_space(text[end:], file), file)
            if _skip_space(text[1:], file):
                raise ValueError("there is text behind the array")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not a JSON array of rows, at element {number} ({error}). Mend the file.") from error


def _element_end(decoder: json.JSONDecoder, text: str, file: IO[str]) -> tuple[int, str]:
    """Return where the element at the start of ``text`` ends, and ``text`` with as much more as that took."""
    while True:
        with suppress(ValueError):
            _, end = decoder.raw_decode(text)
            # A number may go on behind what was read so far.
            if end < len(text):
                return end, text
        # As much again each time: the work stays linear in the element's length.
        more = file.read(max(ARRAY_CHUNK_CHARACTERS, len(text)))
        if not more:
            decoder.raw_decode(text)
            raise ValueError("the array has no end")
        text += more


def _after_comma(text: str, file: IO[str]) -> str:
    """Return ``text``, which follows an element, from the next element or the closing bracket on."""
    if text.startswith("]"):
        return text
    if not text:
        raise ValueError("the array has no end")
    if not text.startswith(","):
        raise ValueError("a comma is missing")
    text = _skip_space(text[1:], file)
    if not text or text.startswith("]"):
        raise ValueError("there is no element behind the last comma")
    return text


def _skip_space(text: str, file: IO[str]) -> str:
    """Return ``text`` without leading white space, more of the file if nothing else is left, empty at its end."""
    text = text.lstrip()
    while not text and (more := file.read(ARRAY_CHUNK_CHARACTERS)):
        text = more.lstrip()
    return text


def _read_parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: it cannot be read as parquet ({type(error).__name__}). Write the file again."
        ) from error


def _read_csv(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file as text, the columns that hold JSON parsed."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader(file), [])
        reader = pyarrow.csv.open_csv(
            path,
            # In one thread arrow knows the row that it cannot read.
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            # Types are not guessed: '007' stays text, and a later block cannot disagree with the first.
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
        for batch in reader:
            for row in batch.to_pylist():
                yield {column: _cell(column, value) for column, value in row.items()}
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        # Arrow's own message quotes the row, which must not reach a log.
        place = re.match(r"CSV parse error: Row #\d+", str(error))
        reason = place.group() if place else type(error).__name__
        raise DataError(f"{name}: it cannot be read as CSV ({reason}). Write the file again.") from None


def _cell(column: str, text: str) -> Any:
    """Parse a cell of a column that is not text; one that is no JSON stays as it is, for validation to report."""
    if column in JSON_COLUMNS:
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return text
