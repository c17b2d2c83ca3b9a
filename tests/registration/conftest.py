"""A workspace with promoted versions, and a registry on loopback for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from osft.workspace import Workspace
from tests.registration.server import RegistryServer, serving
from tests.registration.versions import publish


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with three versions."""
    return publish(tmp_path / "workspace")


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    """A registry of today, without TLS."""
    with serving() as one:
        yield one
