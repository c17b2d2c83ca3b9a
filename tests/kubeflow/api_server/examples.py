"""TrainJobs for tests: a shell command on some nodes, with or without the workspace."""

from pathlib import Path
from typing import Any

OVERRIDES = {
    "2.0": "podSpecOverrides",
    "2.1": "podTemplateOverrides",
    "2.2": "runtimePatches",
    "2.3": "runtimePatches",
}


def shell_job(command: str, *, nodes: int = 1, workspace: Path | None = None, version: str = "2.1") -> dict[str, Any]:
    """Return a TrainJob that runs ``command`` in a shell on each node, with the workspace mounted if given."""
    trainer = {"image": "example/trainer:1", "numNodes": nodes, "command": ["bash", "-c", command]}
    spec: dict[str, Any] = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer}
    if workspace is not None:
        spec[OVERRIDES[version]] = overrides(workspace, version)
    metadata = {"name": "osft-example"}
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def overrides(workspace: Path, version: str) -> list[dict[str, Any]]:
    """Return what mounts the workspace, in the field of this version of Trainer."""
    pod = {
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "osft-workspace"}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "shared", "mountPath": str(workspace)}]}],
    }
    if version == "2.0":
        return [{"targetJobs": [{"name": "node"}], **pod}]
    if version == "2.1":
        return [{"targetJobs": [{"name": "node"}], "spec": pod}]
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    return [{"manager": "example.org/test", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}]
