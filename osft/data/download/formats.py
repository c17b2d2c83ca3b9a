"""A data file to JSON Lines: every format that is known by its suffix, read in bounded memory.

Lines of a JSON Lines file are copied byte for byte, malformed ones too: validation reports them with their number,
which it could not if they were mended or dropped here.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from osft.data.download.archives import archived_files
from osft.data.download.compression import open_plain, read_chunks, write_scratch
from osft.data.download.json_arrays import array_elements, holds_array
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import is_archive, split_suffix
from osft.data.download.tables import arrow_rows, csv_rows, parquet_rows
from osft.errors import DataError

# Formats whose readers jump about in the file.
SEEKING_FORMATS = (".parquet", ".arrow")


def copy_rows(path: Path, name: str, sink: RowSink, scratch: Path) -> None:
    """Append the rows of the file at ``path`` to ``sink``, of an archive those of its files in the order of names.

    Args:
        path: the file's bytes.
        name: the file's own name, which gives the format and stands in errors.
        sink: where the rows go.
        scratch: folder for what must be unpacked to be read, removed again.

    Raises:
        ConfigError: if the suffix is not known.
        DataError: if the file is not what its suffix says, or an archive holds what it may not.
    """
    if not is_archive(name):
        _copy_file(path, name, sink, scratch)
        return
    for member, unpacked in archived_files(path, name, scratch):
        _copy_file(unpacked, f"{name}/{member}", sink, scratch)


def write_rows(rows: Iterable[dict[str, Any]], name: str, sink: RowSink) -> None:
    """Append every row as a JSON object.

    Raises:
        DataError: if a value has no JSON form, such as binary data.
    """
    for number, row in enumerate(rows, start=1):
        try:
            sink.write_line(_as_json(row))
        except TypeError as error:
            # Together they may be nested too deeply where none is alone.
            column = next((column for column, value in row.items() if not _has_json_form(value)), "any")
            raise DataError(
                f"{name}: row {number}, column '{column}' holds a value that JSON cannot ({error}). Drop that column."
            ) from error


def _copy_file(path: Path, name: str, sink: RowSink, scratch: Path) -> None:
    kind, compression = split_suffix(name)
    if kind in SEEKING_FORMATS:
        unpacked = scratch / f"unpacked{kind}"
        try:
            if compression:
                with open_plain(path, name) as file:
                    write_scratch(read_chunks(file), unpacked, name)
            read_rows = parquet_rows if kind == ".parquet" else arrow_rows
            write_rows(read_rows(unpacked if compression else path, name), name, sink)
        finally:
            unpacked.unlink(missing_ok=True)
    elif kind == ".csv":
        write_rows(csv_rows(path, name), name, sink)
    elif kind == ".json" and holds_array(path, name):
        for element in array_elements(path, name):
            sink.write_line(element)
    else:
        _copy_lines(path, name, sink)


def _copy_lines(path: Path, name: str, sink: RowSink) -> None:
    with open_plain(path, name) as file:
        for block in read_chunks(file):
            sink.write_block(block)
    sink.end_line()


def _as_json(value: Any) -> bytes:
    return orjson.dumps(value, default=_iso_time)


def _iso_time(value: Any) -> str:
    """Return the text of a point in time that is finer than Python's own, which orjson does not take itself."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError


def _has_json_form(value: Any) -> bool:
    try:
        _as_json(value)
    except TypeError:
        return False
    return True
