"""What the steps, called as functions, find around them."""

import logging
from pathlib import Path

import pytest

from osft.workspace import Workspace


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points set logging up, for good; put back what was there, so that later tests see their log lines."""
    logger = logging.getLogger("osft")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace that the steps find, in a folder where artifacts may lie beside it."""
    root = tmp_path / "workspace"
    root.mkdir()
    monkeypatch.setenv("OSFT_WORKSPACE", str(root))
    return Workspace(root)
