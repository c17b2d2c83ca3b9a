"""The rows of parquet, Arrow and CSV files, a few at a time.

Dates and times become ISO text. Floating-point numbers that are none (NaN, infinities) become null, since JSON has no
form for them and tables use NaN for what is missing. What else has no JSON form (binary data, decimals, durations) is
an error: a guess would change the data.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from osft.data.download.compression import CHUNK_BYTES, open_plain
from osft.errors import DataError, one_line

# Rows become Python objects this many at a time; more is hardly faster, and a row may have megabytes.
PIECE_ROWS = 64
# The same in bytes, as far as metadata tell the size of rows.
PIECE_BYTES = 1 << 24
# Of a CSV file; the longest cell, and the longest line.
MAX_CELL_CHARACTERS = 1 << 28
# The columns of the data formats whose values are not text.
JSON_COLUMNS = ("messages", "unmask", "input_ids", "labels")
ARROW_FILE_MAGIC = b"ARROW1"
# What pyarrow raises for text that is not UTF-8, a date that Python does not know, an index that points nowhere.
UNREADABLE_VALUE = (ValueError, OverflowError, LookupError)
END_OF_ARROW_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def parquet_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file.

    Raises:
        DataError: if it cannot be read, or a value has no Python form.
    """
    return python_rows(_readable(_parquet_batches(path), name, "parquet"), name)


def arrow_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file, or of an Arrow stream, as ``datasets`` writes them.

    Raises:
        DataError: if it cannot be read, or a value has no Python form.
    """
    return python_rows(_readable(_arrow_batches(path), name, "Arrow"), name)


def csv_rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file, compressed or not, as text, the columns that hold JSON parsed.

    Raises:
        DataError: if it cannot be read, or a row has other columns than the first line.
    """
    # The module has one limit for the process; as it stands it is too short for a document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with io.TextIOWrapper(open_plain(path, name), encoding="utf-8-sig", newline="") as file:
        # Not Arrow's reader, which reads far ahead, and takes a quoted cell that is cut off for whole.
        reader = csv.reader(_lines(file), strict=True)
        try:
            columns = next(reader, [])
            _check_names(columns, name)
            for cells in reader:
                if len(cells) not in (0, len(columns)):
                    raise csv.Error(f"{len(columns)} columns were expected and {len(cells)} are there")
                if cells:
                    yield {column: _cell(column, text) for column, text in zip(columns, cells, strict=True)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{name}: it cannot be read as CSV at line {reader.line_num} ({one_line(error)}). Write the file again."
            ) from None


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    # Buffered column by column: the default reads whole row groups.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK_BYTES, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
            rows = min(PIECE_ROWS, max(1, PIECE_BYTES // row_bytes))
            yield from file.iter_batches(batch_size=rows, row_groups=[group])


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    # Mapped, so that of a large batch only what is looked at takes memory.
    with pa.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC:
            file = pa.ipc.open_file(source)
            batches: Iterable[pa.RecordBatch] = map(file.get_batch, range(file.num_record_batches))
        else:
            source.seek(0)
            batches = pa.ipc.open_stream(source)
        for batch in batches:
            # What Arrow wrote it does not check as it reads, and a wrong offset would end the process.
            batch.validate(full=True)
            yield batch
        if not isinstance(batches, map):
            _check_stream_end(source)


def _check_stream_end(source: pa.MemoryMappedFile) -> None:
    """Check that a stream was read to its mark of the end; Arrow takes one that is cut between batches for whole."""
    end = source.tell()
    source.seek(max(0, end - len(END_OF_ARROW_STREAM)))
    if end != source.size() or source.read() != END_OF_ARROW_STREAM:
        raise pa.ArrowInvalid("the stream has no end, or something follows it")


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield lines, none of which fills the memory because the file is no CSV."""
    while line := file.readline(MAX_CELL_CHARACTERS):
        if len(line) == MAX_CELL_CHARACTERS:
            raise csv.Error(f"a line has {MAX_CELL_CHARACTERS} characters or more")
        yield line


def _readable(batches: Iterator[pa.RecordBatch], name: str, kind: str) -> Iterator[pa.RecordBatch]:
    """Pass batches on, and make one clear error of whatever Arrow finds wrong with the file."""
    try:
        for batch in batches:
            _check_names(batch.schema.names, name)
            yield batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: it cannot be read as {kind} ({one_line(error)}). Write the file again.") from None


def _check_names(columns: Sequence[str], name: str) -> None:
    if not columns:
        raise DataError(f"{name}: it has no columns. Name them; a CSV file does so in its first line.")
    if len(set(columns)) < len(columns):
        raise DataError(f"{name}: two columns have one name, among {', '.join(sorted(columns))}. Rename one.")


def python_rows(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[dict[str, Any]]:
    """Yield rows as Python objects, a few at a time.

    Raises:
        DataError: if a value has no Python form.
    """
    first_row = 1
    for batch in batches:
        rows_at_once = min(PIECE_ROWS, max(1, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows_at_once):
            piece = batch.slice(start, rows_at_once)
            try:
                rows = piece.to_pylist()
            except UNREADABLE_VALUE:
                _refuse_value(piece, name, first_row + start)
            yield from rows
        first_row += batch.num_rows


def _refuse_value(piece: pa.RecordBatch, name: str, first_row: int) -> NoReturn:
    """Raise the error for the first value of ``piece`` that Python has no form for."""
    for number in range(piece.num_rows):
        for column, values in zip(piece.schema.names, piece.columns, strict=True):
            try:
                values[number].as_py()
            except UNREADABLE_VALUE as error:
                raise DataError(
                    f"{name}: row {first_row + number}, column '{column}' cannot be read ({type(error).__name__}). "
                    "Mend or drop that column."
                ) from None
    raise DataError(f"{name}: row {first_row}, or one soon after it, cannot be read. Write the file again.")


def _cell(column: str, text: str) -> Any:
    """Parse a cell of a column that is not text; one that is no JSON stays as it is, for validation to report."""
    if column in JSON_COLUMNS:
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return text
