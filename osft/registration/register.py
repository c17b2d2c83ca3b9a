"""Registering a promoted version: a registered model, its version, and the artifact that says where the files are.

Each of the three is looked for before it is created, so registering again changes nothing, and a step that was killed
goes on where it was. Nothing that is there is changed: a version of the same name from another run or at another
place belongs to another workspace, and is an error.

``modelFormatName`` is ``vLLM``, not ``safetensors``: a deployment is matched with the formats that serving runtimes
list, and that is what RHOAI's runtimes for language models call theirs. Its dashboard shows the name where the format
is chosen, fills in the ``uri``, and with the source (``kfp``, the project, the run) links the version to the run that
made it; a registry from before March 2025 (kubeflow/hub #838) takes an artifact without keeping its source. KServe
reads nothing of the registry but the ``uri``.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from mr_openapi import (
    Artifact,
    ArtifactState,
    MetadataBoolValue,
    MetadataDoubleValue,
    MetadataIntValue,
    MetadataStringValue,
    MetadataValue,
    ModelArtifact,
    ModelRegistryServiceApi,
    ModelVersion,
    ModelVersionCreate,
    ModelVersionState,
    RegisteredModel,
    RegisteredModelCreate,
    RegisteredModelState,
)

from osft.registration.connection import Connection
from osft.registration.description import Property, describe_model, describe_version, properties_of
from osft.registration.errors import RegistryError
from osft.registration.location import uri_in
from osft.registration.registry import Patience, Registry, connect
from osft.versions.folders import relative_path, versions_folder
from osft.versions.lineage import Lineage, chain_of
from osft.versions.run_record import PACKAGE
from osft.workspace import Workspace

logger = logging.getLogger(__name__)

MODEL_FORMAT = "vLLM"
SOURCE_KIND, SOURCE_CLASS = "kfp", "pipelinerun"
RUN_PROPERTY = "run_id"
# The client takes whole numbers of at most nine digits, the registry of 32 bits; a larger one is kept as text.
LARGEST_INTEGER = 10**9 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A version as the registry knows it."""

    registry: str
    """Address of the registry."""

    registered_model_id: str
    model_version_id: str
    model_artifact_id: str
    uri: str
    """Where the version's files are."""

    link: str
    """Address of the version in the registry's API."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What is to be registered."""

    lineage: Lineage
    uri: str
    project: str | None
    properties: Mapping[str, Property]


def register_version(
    workspace: Workspace,
    connection: Connection,
    *,
    model_name: str,
    version: str | None,
    location: str,
    patience: Patience | None = None,
) -> Registration:
    """Register a promoted version, unless it is registered.

    Args:
        workspace: where the version is.
        connection: the registry.
        model_name: folder name below ``models``, and name of the registered model.
        version: such as ``v0003``; None takes the current one.
        location: where others find the workspace, of :func:`osft.registration.location.workspace_location`.
        patience: how long a registry that fails is tried again; None takes the default.

    Raises:
        RegistryError: if the registry refuses, cannot be reached, has this version from another run or place, or has
            the model or the version archived.
        MissingPathError: if there is no such version.
        WorkspaceError: if its lineage cannot be read.
    """
    chain = chain_of(workspace, model_name, version)
    folder = versions_folder(workspace, model_name) / chain[-1].version
    record = _Record(
        lineage=chain[-1],
        uri=uri_in(location, relative_path(workspace, folder)),
        project=connection.project,
        properties=properties_of(chain),
    )
    return asyncio.run(_register(record, connection, patience or Patience()))


async def _register(record: _Record, connection: Connection, patience: Patience) -> Registration:
    async with connect(connection, patience) as registry:
        model = await _ensure_model(registry, record.lineage)
        if model.state == RegisteredModelState.ARCHIVED:
            raise _archived(registry, f"the registered model '{model.name}'")
        version = await _ensure_version(registry, record, model.id)
        if _run_of(version) != record.lineage.run_id:
            other = await _find_artifact(registry, record.lineage.model_name, version.id)
            raise _taken(registry, record, run_id=_run_of(version), uri=other.uri if other else None)
        if version.state == ModelVersionState.ARCHIVED:
            raise _archived(registry, f"version {version.name} of '{model.name}'")
        artifact = await _ensure_artifact(registry, record, version.id)
        if artifact.uri != record.uri:
            raise _taken(registry, record, run_id=_run_of(version), uri=artifact.uri)
        lineage = record.lineage
        logger.info("%s %s is version %s in %s", lineage.model_name, lineage.version, version.id, registry.address)
        return Registration(
            registry=registry.address,
            registered_model_id=model.id,
            model_version_id=version.id,
            model_artifact_id=artifact.id,
            uri=record.uri,
            link=f"{registry.api_address}/model_versions/{version.id}",
        )


async def _ensure_model(registry: Registry, lineage: Lineage) -> RegisteredModel:
    new = RegisteredModelCreate(name=lineage.model_name, description=describe_model(lineage), owner=PACKAGE)
    return await registry.ensure(
        lambda api: api.find_registered_model(name=lineage.model_name), lambda api: api.create_registered_model(new)
    )


async def _ensure_version(registry: Registry, record: _Record, model_id: str) -> ModelVersion:
    new = ModelVersionCreate(
        name=record.lineage.version,
        registeredModelId=model_id,
        description=describe_version(record.lineage),
        author=PACKAGE,
        customProperties={name: _typed(value) for name, value in record.properties.items()},
    )
    return await registry.ensure(
        lambda api: api.find_model_version(name=record.lineage.version, parent_resource_id=model_id),
        lambda api: api.create_model_version(new),
    )


async def _ensure_artifact(registry: Registry, record: _Record, version_id: str) -> ModelArtifact:
    """Return the artifact, which is called like the model: by that name the client's own functions look for it."""
    run_id = record.lineage.run_id
    new = ModelArtifact(
        name=record.lineage.model_name,
        uri=record.uri,
        state=ArtifactState.LIVE,
        modelFormatName=MODEL_FORMAT,
        modelSourceKind=SOURCE_KIND,
        modelSourceClass=SOURCE_CLASS,
        modelSourceGroup=record.project,
        modelSourceId=run_id,
        modelSourceName=run_id,
    )

    async def create(api: ModelRegistryServiceApi) -> ModelArtifact:
        return (await api.upsert_model_version_artifact(version_id, Artifact(new))).actual_instance

    return await registry.ensure(
        lambda api: api.find_model_artifact(name=record.lineage.model_name, parent_resource_id=version_id), create
    )


async def _find_artifact(registry: Registry, model_name: str, version_id: str) -> ModelArtifact | None:
    return await registry.find(lambda api: api.find_model_artifact(name=model_name, parent_resource_id=version_id))


def _typed(value: Property) -> MetadataValue:
    """Return a value in the registry's form, which names its type."""
    if isinstance(value, bool):
        return MetadataValue(MetadataBoolValue(bool_value=value, metadataType="MetadataBoolValue"))
    if isinstance(value, float):
        return MetadataValue(MetadataDoubleValue(double_value=value, metadataType="MetadataDoubleValue"))
    if isinstance(value, int) and abs(value) <= LARGEST_INTEGER:
        return MetadataValue(MetadataIntValue(int_value=str(value), metadataType="MetadataIntValue"))
    return MetadataValue(MetadataStringValue(string_value=str(value), metadataType="MetadataStringValue"))


def _run_of(version: ModelVersion) -> str | None:
    """Return the run that a registered version is from; None if it does not say, as one that was made by hand."""
    value = (version.custom_properties or {}).get(RUN_PROPERTY)
    return getattr(value.actual_instance, "string_value", None) if value else None


def _archived(registry: Registry, what: str) -> RegistryError:
    return RegistryError(
        f"model registry {registry.address}: {what} is archived. Restore it in the registry and register again, or "
        "give the workspace's model another name (promote_model_name)."
    )


def _taken(registry: Registry, record: _Record, *, run_id: str | None, uri: str | None) -> RegistryError:
    lineage = record.lineage
    return RegistryError(
        f"model registry {registry.address}: version {lineage.version} of '{lineage.model_name}' is registered "
        f"already, from run {run_id or '(none)'} at {uri or '(no place)'}, and this one is from run "
        f"{lineage.run_id} at {record.uri}. Nothing was changed: give this workspace's model a name of its own "
        "(promote_model_name)."
    )
