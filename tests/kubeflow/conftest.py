"""A cluster on loopback for each test that asks for one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kubeflow.api_server.service import Service

CLAIM = "osft-workspace"


@pytest.fixture
def workspace_folder(tmp_path: Path) -> Path:
    """The volume of the workspace, at the path where the step has it."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def make_service(tmp_path: Path, workspace_folder: Path) -> Iterator[Callable[..., Service]]:
    """Start an API server of a Trainer version, e.g. ``make_service("2.1")``."""
    services: list[Service] = []

    def make(version: str = "2.1") -> Service:
        folder = tmp_path / f"cluster-{len(services)}"
        services.append(Service(folder, version, {CLAIM: workspace_folder}))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """An API server with Trainer 2.1."""
    return make_service()
