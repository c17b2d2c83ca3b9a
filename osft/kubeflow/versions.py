"""Where a TrainJob takes changes of its pods: Kubeflow Trainer has moved that field twice.

An API server silently drops a field that its schema (the CRD) does not know, and the pods then start without the
volume. So the field is the one that the server's own CRD has. Reading a CRD needs a right that no Role of a namespace
can grant; without it the server is asked what it would keep of a job that it is only to pretend to create.
"""

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from osft.errors import ConfigError

logger = logging.getLogger(__name__)

# The runtimes' name both of the job that trains and of its container.
NODE = "node"
# Who made an entry of runtimePatches, as domain/name.
PATCH_MANAGER = "trainer.kubeflow.org/osft-continual-learning"


class OverridesField(Enum):
    """The field of a TrainJob's spec that changes the runtime's pods, newest first."""

    RUNTIME_PATCHES = "runtimePatches"
    """Kubeflow Trainer 2.2 and later."""

    POD_TEMPLATE_OVERRIDES = "podTemplateOverrides"
    """2.1, which RHOAI 3.3 runs."""

    POD_SPEC_OVERRIDES = "podSpecOverrides"
    """2.0."""


def overrides(field: OverridesField, pod_spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the value of ``field`` that gives every training pod ``pod_spec``."""
    return _VALUES[field](dict(pod_spec))


def field_in_crd(crd: Mapping[str, Any], version: str) -> OverridesField:
    """Return the field that the schema of ``version`` in a CustomResourceDefinition has.

    Raises:
        ConfigError: if it has none of those that are known here.
    """
    properties: set[str] = set()
    for served in crd["spec"]["versions"]:
        if served["name"] == version and served.get("served", True):
            properties = set(served["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])
    return _newest(properties, f"the CRD {crd['metadata']['name']}, version {version},")


def field_kept(try_manifest: Callable[[OverridesField], Mapping[str, Any]]) -> OverridesField:
    """Return the newest field that the API server keeps.

    Args:
        try_manifest: has the server pretend to create a job with the field, and returns what it would store.

    Raises:
        ConfigError: if it keeps none.
    """
    kept = {field.value for field in OverridesField if field.value in try_manifest(field)["spec"]}
    return _newest(kept, "the API server")


def _newest(names: set[str], where: str) -> OverridesField:
    for field in OverridesField:
        if field.value in names:
            logger.debug("%s has %s", where, field.value)
            return field
    raise ConfigError(
        f"{where} knows none of {', '.join(field.value for field in OverridesField)} in a TrainJob, so its pods cannot "
        "get the workspace. Use Kubeflow Trainer 2.0 or newer."
    )


def _runtime_patches(pod_spec: dict[str, Any]) -> list[dict[str, Any]]:
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod_spec}}}}
    template = {"spec": {"replicatedJobs": [job]}}
    return [{"manager": PATCH_MANAGER, "trainingRuntimeSpec": {"template": template}}]


def _pod_template_overrides(pod_spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"targetJobs": [{"name": NODE}], "spec": pod_spec}]


def _pod_spec_overrides(pod_spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"targetJobs": [{"name": NODE}], **pod_spec}]


_VALUES: dict[OverridesField, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    OverridesField.RUNTIME_PATCHES: _runtime_patches,
    OverridesField.POD_TEMPLATE_OVERRIDES: _pod_template_overrides,
    OverridesField.POD_SPEC_OVERRIDES: _pod_spec_overrides,
}
