"""The command that registers a version which was promoted before, as a person types it."""

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from osft.errors import ConfigError, MissingPathError
from osft.registration.commands import register
from osft.workspace import Workspace
from tests.registration.server import TOKEN, RegistryServer


@pytest.fixture
def invoke(workspace: Workspace, server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call the command on a workspace with three versions, with the registry's token in the environment."""
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", TOKEN)
    app = typer.Typer()
    app.command()(register)

    def call(model_name: str, *arguments: str, address: str = server.address) -> Any:
        return CliRunner().invoke(app, [str(workspace.root), model_name, "--address", address, *arguments])

    return call


def test_the_current_version_is_registered_with_the_claim(invoke: Callable[..., Any], server: RegistryServer) -> None:
    result = invoke("demo", "--claim", "my-claim")

    link = f"{server.address}/api/model_registry/v1/model_versions/2"
    assert result.output == f"pvc://my-claim/models/demo/v0003 is registered: {link}\n"
    assert [one["name"] for one in server.api.versions] == ["v0003"]


def test_an_earlier_version_is_registered_where_others_find_it(
    invoke: Callable[..., Any], server: RegistryServer
) -> None:
    result = invoke("demo", "--version", "v0001", "--location", "s3://bucket")

    assert result.exit_code == 0
    assert [one["uri"] for one in server.api.artifacts] == ["s3://bucket/models/demo/v0001"]


@pytest.mark.parametrize("arguments", [[], ["--claim", "my-claim", "--location", "s3://bucket"]])
def test_where_the_workspace_is_must_be_said_once(invoke: Callable[..., Any], arguments: list[str]) -> None:
    result = invoke("demo", *arguments)

    assert isinstance(result.exception, ConfigError)
    assert "where the workspace is. Give either --claim or --location" in str(result.exception)


def test_an_empty_address_is_refused(invoke: Callable[..., Any]) -> None:
    result = invoke("demo", "--claim", "my-claim", address="")

    assert isinstance(result.exception, ConfigError)
    assert "model registry '' is not an address" in str(result.exception)


def test_a_model_that_was_never_promoted_is_refused(invoke: Callable[..., Any], server: RegistryServer) -> None:
    result = invoke("demos", "--claim", "my-claim")

    assert isinstance(result.exception, MissingPathError)
    assert "Did you mean demo?" in str(result.exception)
    assert server.requests == []
