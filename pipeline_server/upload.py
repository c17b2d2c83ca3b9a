"""Uploading a compiled pipeline: a version is named by what is in it, so the same is never there twice."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp_server_api import V2beta1Pipeline

from pipeline_server.client import PipelineServer, is_named, list_all, silence
from pipeline_server.errors import CONFLICT, PipelineServerError

# Hexadecimal digits of the hash in a version's name: enough that no two contents meet.
NAME_DIGITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineVersion:
    """A version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool
    """Whether this call uploaded it."""


def name_version(file: Path) -> str:
    """Return the name of the version that has the content of ``file``."""
    return f"sha256-{hashlib.sha256(file.read_bytes()).hexdigest()[:NAME_DIGITS]}"


def upload_version(server: PipelineServer, file: Path, name: str, description: str) -> PipelineVersion:
    """Upload a compiled pipeline, unless the server has it.

    Another who uploads the same at the same time, and an upload whose answer was lost, are taken for what they are.

    Args:
        server: where to.
        file: the compiled pipeline.
        name: the pipeline's name; it is created if there is none.
        description: what the pipeline is for.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached.
    """
    pipeline_id = find_pipeline(server, name) or _create_pipeline(server, name, description)
    version = name_version(file)
    if version_id := _find_version(server, pipeline_id, version):
        return PipelineVersion(pipeline_id=pipeline_id, version_id=version_id, name=version, is_new=False)
    try:
        with silence():
            uploaded = server.upload_pipeline_version(str(file), version, pipeline_id=pipeline_id)
        version_id = uploaded.pipeline_version_id
    except PipelineServerError as error:
        version_id = _find_version(server, pipeline_id, version) if error.status == CONFLICT else None
        if version_id is None:
            raise
    return PipelineVersion(pipeline_id=pipeline_id, version_id=version_id, name=version, is_new=True)


def find_pipeline(server: PipelineServer, name: str) -> str | None:
    """Return the id of the pipeline ``name``; ``None`` if there is none."""
    found = list_all(server.list_pipelines, "pipelines", filter=is_named(name), namespace=server.namespace)
    return next((pipeline.pipeline_id for pipeline in found), None)


def _create_pipeline(server: PipelineServer, name: str, description: str) -> str:
    """Create a pipeline without versions: the upload that creates one gives its first version the pipeline's name."""
    body = V2beta1Pipeline(display_name=name, description=description, namespace=server.namespace)
    try:
        created: Any = server.pipelines.pipeline_service_create_pipeline(pipeline=body)
    except PipelineServerError as error:
        pipeline_id = find_pipeline(server, name) if error.status == CONFLICT else None
        if pipeline_id is None:
            raise
        return pipeline_id
    return str(created.pipeline_id)


def _find_version(server: PipelineServer, pipeline_id: str, version: str) -> str | None:
    found = list_all(
        server.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline_id, filter=is_named(version)
    )
    return next((one.pipeline_version_id for one in found), None)
