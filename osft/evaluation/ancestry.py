"""What an evaluation is told of the versions that its base descends from.

The versions are kept by :mod:`osft.versions`, which imports the evaluation and is not imported by it: here stands what
the two have to agree on.
"""

from collections.abc import Mapping
from typing import Protocol

ORIGIN_VERSION = "v0000"
"""What the model that a chain began with is called among its versions; it has answers and no weights."""


class Ancestry(Protocol):
    """Where the base of a run comes from; :class:`osft.versions.base_model.BaseModel` is one."""

    @property
    def parent(self) -> str | None:
        """The version that the base is; None: it is none, and nothing was promoted before it."""

    @property
    def origin(self) -> str:
        """The model that the chain began with: a name on the Hub, a path or ``pvc://``."""

    @property
    def earlier_holdouts(self) -> Mapping[str, str]:
        """Folder of the held-out rows of each earlier version, relative to the workspace, by name of the task."""

    @property
    def ancestor_measurements(self) -> Mapping[str, str]:
        """Folder of the measurements of each version, relative to the workspace, oldest first."""
