"""The names under which the data steps leave files for each other."""

from pathlib import Path

from osft.errors import MissingPathError

ROWS_NAME = "rows.jsonl"
SOURCE_NAME = "source.json"
VALID_NAME = "valid.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"
SEEN_ROWS_NAME = "seen_rows.bin"
# Hashes of what became of the valid rows: those that were kept, of these the held-out ones, and those that were not.
TAKEN_ROWS_NAME, HELD_OUT_ROWS_NAME, TOO_LONG_ROWS_NAME = "taken_rows.bin", "held_out_rows.bin", "too_long_rows.bin"
TRAIN_NAME = "train.parquet"
HOLDOUT_NAME = "holdout.parquet"
# Names of their own, so that the steps may share a folder.
VALIDATION_REPORT_NAME, VALIDATION_PAGE_NAME = "validation.json", "validation.html"
PROCESSING_REPORT_NAME, PROCESSING_PAGE_NAME = "processing.json", "processing.html"


def jsonl_file(source: Path, name: str) -> Path:
    """Return ``source``, or the file ``name`` in it if it is a folder.

    Raises:
        MissingPathError: if that file does not exist.
    """
    path = source / name if source.is_dir() else source
    if not path.is_file():
        raise MissingPathError(f"{path}: there is no such file. Give a JSON Lines file or a folder that holds {name}.")
    return path
