"""Which files are data, told by the suffix of their names."""

import re

from osft.errors import ConfigError

FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".arrow")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
ARCHIVES = (".zip", ".tar", ".tgz", *(f".tar{compression}" for compression in COMPRESSIONS))
ALLOWED_SUFFIXES = (
    f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}, "
    f"and archives of such files: {', '.join(ARCHIVES)}"
)
DATA_FILE = re.compile(r"(\.jsonl|\.json|\.parquet|\.csv|\.arrow)(\.gz|\.zst|\.bz2|\.xz)?$", re.IGNORECASE)
ARCHIVE = re.compile(r"(\.zip|\.tgz|\.tar)((?<=\.tar)(?:\.gz|\.zst|\.bz2|\.xz))?$", re.IGNORECASE)


def is_known(name: str) -> bool:
    """Return whether a file's name ends in the suffix of a data file or an archive."""
    return is_data_file(name) or is_archive(name)


def is_data_file(name: str) -> bool:
    """Return whether a file's name ends in the suffix of a format, compressed or not."""
    return DATA_FILE.search(name) is not None


def is_archive(name: str) -> bool:
    """Return whether a file's name ends in the suffix of an archive."""
    return ARCHIVE.search(name) is not None


def split_suffix(name: str) -> tuple[str, str]:
    """Return format and compression of a file's name, both with their dot, the compression empty if there is none.

    An archive has the format ``.zip`` or ``.tar``.

    Raises:
        ConfigError: if the suffix is not known.
    """
    match = DATA_FILE.search(name) or ARCHIVE.search(name)
    if match is None:
        raise ConfigError(f"'{name}': the format is not known by its suffix. Allowed are {ALLOWED_SUFFIXES}.")
    kind, compression = match.group(1).lower(), (match.group(2) or "").lower()
    return (".tar", ".gz") if kind == ".tgz" else (kind, compression)
