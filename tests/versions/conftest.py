"""What the tests of versions share."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from osft.workspace import Workspace
from tests.versions.finished_runs import promote, set_age


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def chain_template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a workspace with so many versions, each with a memory, whose runs ended a minute apart, a while ago."""

    @functools.cache
    def make(versions: int) -> Path:
        workspace = Workspace(tmp_path_factory.mktemp("chain"))
        for number in range(1, versions + 1):
            promote(workspace, f"run-{number}", memory=True)
            set_age(workspace, f"run-{number}", 3600 - 60 * number)
        return workspace.root

    return make


@pytest.fixture
def chained(workspace: Workspace, chain_template: Callable[[int], Path]) -> Workspace:
    """A workspace with three versions."""
    shutil.copytree(chain_template(3), workspace.root, dirs_exist_ok=True)
    return workspace
