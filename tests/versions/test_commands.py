"""The commands of versions, as a person types them."""

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from osft.errors import MissingPathError
from osft.versions.commands import prune, rollback
from osft.workspace import Workspace


@pytest.fixture
def invoke(chained: Workspace) -> Callable[..., Any]:
    """Call a command on a workspace with three versions."""
    app = typer.Typer()
    app.command()(rollback)
    app.command()(prune)

    def call(name: str, *arguments: str) -> Any:
        return CliRunner().invoke(app, [name, str(chained.root), *arguments])

    return call


def test_a_rollback_says_what_is_current_and_what_was(invoke: Callable[..., Any]) -> None:
    assert invoke("rollback", "ours").output == "ours: v0002 is the current version, v0003 was.\n"
    assert invoke("rollback", "ours", "--to", "v0001").output == "ours: v0001 is the current version, v0002 was.\n"


def test_pruning_lists_what_went_and_what_it_freed(invoke: Callable[..., Any]) -> None:
    result = invoke("prune", "ours", "--keep-versions", "2")

    assert result.output == "removed models/ours/v0001, 31 bytes\n31 bytes freed\n"
    assert invoke("prune", "ours").output == "0 bytes freed\n"


@pytest.mark.parametrize("command", ["rollback", "prune"])
def test_a_model_that_does_not_exist_is_refused(invoke: Callable[..., Any], command: str) -> None:
    result = invoke(command, "hours")

    assert isinstance(result.exception, MissingPathError)
    assert "model 'hours': nothing is promoted under this name" in str(result.exception)


def test_a_workspace_that_does_not_exist_is_refused() -> None:
    app = typer.Typer()
    app.command()(prune)

    result = CliRunner().invoke(app, ["/nowhere/at/all", "ours"])

    assert "/nowhere/at/all: the workspace does not exist" in str(result.exception)
