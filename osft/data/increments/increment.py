"""What a run takes of its data set when it is not the first one."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Increment:
    """Which of the valid rows are taken; by default all of them."""

    since: datetime | None = None
    """Rows from then on, in UTC; ``None``: of any time, and rows need none."""

    time_column: str = "timestamp"
    """Key of a row's time (:func:`osft.data.increments.times.read_time`); used with ``since`` only."""

    seen_rows: tuple[Path, ...] = ()
    """Files with the hashes of earlier runs' rows, which are left out."""

    held_out_rows: tuple[Path, ...] = ()
    """Files with the hashes of those of them that were held out, and so are left out with :attr:`force` too."""

    too_long_rows: tuple[Path, ...] = ()
    """Files with the hashes of rows that earlier runs dropped as too long, as this one would; they are left out too."""

    force: bool = False
    """Rows of earlier runs are counted, but stay, unless they were held out."""

    unchanged_since: str | None = None
    """The version whose run had the same source, byte for byte, to tell a person why there is nothing new."""
