"""Finding what a person named on a command line: a workspace, and a run or model in it."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from osft.errors import MissingPathError
from osft.workspace import Workspace

MAX_NAMES = 5
"""Names in a sentence."""


def open_workspace(folder: Path) -> Workspace:
    """Return the workspace in ``folder``.

    Raises:
        MissingPathError: if there is no such folder.
    """
    if not folder.is_dir():
        raise MissingPathError(f"{folder}: the workspace does not exist. Give the folder that holds runs/ and models/.")
    return Workspace(folder.resolve())


def describe_near(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what was perhaps meant by a name that is not known, or some of what there is."""
    names = sorted(known)
    if not names:
        return "There is none yet."
    if near := difflib.get_close_matches(name, names, n=3):
        return f"Did you mean {' or '.join(near)}?"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"There is {', '.join(names[:MAX_NAMES])}{more}."
