"""Artifacts of the pipeline, as KFP would hand them to a step."""

from typing import Any

from kfp import dsl

from osft.workspace import Manifest, Workspace


def artifact(kind: type[dsl.Artifact], workspace: Workspace, name: str, manifest: Manifest | None = None) -> Any:
    """Return an artifact of the pipeline, with a manifest in it if it is an input."""
    one = kind(uri=str(workspace.root.parent / name))
    if manifest is not None:
        manifest.save(one.path)
    return one
