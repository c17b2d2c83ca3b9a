"""Registering a promoted version from what a person gives: an address, and where the volume is.

What needs neither network nor secrets is checked in :func:`check_registry`, so that a run hears of it in its first
step: after the training it is too late, since a retry has the same parameters and a new run has no new rows. The
client is an extra of the package and takes a second to import, so it is imported only where a version is registered.
"""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from osft.errors import ConfigError
from osft.registration.connection import check_address, find_connection
from osft.registration.location import workspace_location
from osft.workspace import Workspace

if TYPE_CHECKING:
    from osft.registration.register import Registration

CLIENT = "mr_openapi"


def check_registry(address: str, *, location: str, claim: str) -> None:
    """Refuse what no version could be registered with.

    Args:
        address: the registry's; empty if there is none, and then nothing is checked.
        location: where others find the workspace; empty: the volume of ``claim``.
        claim: claim of the shared volume.

    Raises:
        ConfigError: if an address is given and it is none, the location is none, or the client is not installed.
    """
    if address:
        _check(address, location, claim)


def register_promoted(
    workspace: Workspace,
    *,
    model_name: str,
    version: str | None,
    address: str,
    location: str,
    claim: str,
    environment: Mapping[str, str],
) -> "Registration":
    """Register a promoted version, unless it is registered.

    Args:
        workspace: where the version is.
        model_name: folder name below ``models``, and name of the registered model.
        version: such as ``v0003``; None takes the current one.
        address: the registry's.
        location: where others find the workspace; empty: the volume of ``claim``.
        claim: claim of the shared volume.
        environment: may hold ``MODEL_REGISTRY_TOKEN`` and ``MODEL_REGISTRY_CA_CERT``.

    Raises:
        ConfigError: if address, location, token or authority cannot be used, or the client is not installed.
        RegistryError: if the registry refuses, cannot be reached, or has this version from another run or place.
        MissingPathError: if there is no such version.
        WorkspaceError: if its lineage cannot be read.
    """
    _check(address, location, claim)
    # An extra of the package.
    from osft.registration.register import register_version

    return register_version(
        workspace,
        find_connection(address, environment),
        model_name=model_name,
        version=version,
        location=workspace_location(location, claim),
    )


def _check(address: str, location: str, claim: str) -> None:
    check_address(address)
    workspace_location(location, claim)
    if importlib.util.find_spec(CLIENT) is None:
        raise ConfigError(
            "a model registry's address is given, and its client is not installed. Install it with pip install "
            "'osft-continual-learning[registry]', or give no address."
        )
