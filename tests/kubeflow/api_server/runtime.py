"""From a TrainJob to the pods that it asks for: Trainer's webhook, its torch plugin and its merge with the runtime.

What the webhook refuses and the environment that pods get follow pkg/runtime/framework/plugins (torch, jobset) of
kubeflow/trainer 2.1 and 2.2.
"""

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

from tests.kubeflow.api_server.errors import denied

Object = dict[str, Any]
RESERVED = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
MASTER_PORT = 29400
REPLICATED_JOB = "node"
CONTAINER = "node"
MERGE_KEYS = {
    **dict.fromkeys(("containers", "initContainers", "volumes", "env", "imagePullSecrets"), "name"),
    "volumeMounts": "mountPath",
}
MANAGER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/\S+")


def torch_distributed() -> Object:
    """Return the ClusterTrainingRuntime that Trainer installs for torchrun."""
    container = {"name": CONTAINER, "image": "pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime"}
    job = {
        "name": REPLICATED_JOB,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
            "template": {"spec": {"replicatedJobs": [job]}},
        },
    }


def refuse_unfit(job: Object) -> None:
    """Do what Trainer's webhook does.

    Raises:
        ApiError: 403 with the webhook's reason.
    """
    trainer = job["spec"].get("trainer") or {}
    if taken := sorted({entry["name"] for entry in trainer.get("env", [])} & set(RESERVED)):
        raise denied(f"spec.trainer.env: Invalid value: must not have reserved envs, invalid envs configured: {taken}")
    processes = trainer.get("numProcPerNode")
    if isinstance(processes, str) and processes not in ("auto", "cpu", "gpu"):
        raise denied("spec.trainer.numProcPerNode: Invalid value: must have an int value or [auto cpu gpu]")
    for patch in job["spec"].get("runtimePatches", []):
        if not MANAGER.fullmatch(patch["manager"]):
            raise denied('spec.runtimePatches.manager: Invalid value: must be a domain-prefixed path ("acme.io/foo")')
    for name, target, spec in _overrides(job):
        if target != REPLICATED_JOB:
            raise denied(f"spec.{name}: Invalid value: must not have targetJob that doesn't exist in the runtime")
        for container in spec.get("spec", {}).get("containers", []):
            if container["name"] != CONTAINER:
                raise denied(f"spec.{name}: Invalid value: must not have container that doesn't exist in the runtime")
            if container.get("env"):
                raise denied(f"spec.{name}: Invalid value: must not have envs for the {CONTAINER} containers")


def pod_template(job: Object, runtime: Object) -> Object:
    """Return the template of the pods: the runtime's, the TrainJob's overrides, and what its trainer says."""
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    template: Object = copy.deepcopy(replicated["template"]["spec"]["template"])
    for _, _, override in _overrides(job):
        template = _merged(template, override)
    (container,) = template["spec"]["containers"]
    trainer = job["spec"].get("trainer") or {}
    container |= {name: trainer[name] for name in ("image", "command", "args") if name in trainer}
    container["resources"] = trainer.get("resourcesPerNode", container.get("resources", {}))
    container["env"] = _merged(container.get("env", []), _torch_environment(job, runtime), "env")
    container["env"] = _merged(container["env"], trainer.get("env", []), "env")
    return template


def count_nodes(job: Object, runtime: Object) -> int:
    """Return how many pods the job has."""
    trainer = job["spec"].get("trainer") or {}
    return int(trainer.get("numNodes") or runtime["spec"]["mlPolicy"]["numNodes"])


def _torch_environment(job: Object, runtime: Object) -> list[Object]:
    name = job["metadata"]["name"]
    trainer = job["spec"].get("trainer") or {}
    resources = trainer.get("resourcesPerNode") or {}
    processes = trainer.get("numProcPerNode", "auto")
    if processes == "cpu" or (processes == "auto" and not _amount(resources, "nvidia.com/gpu")):
        processes = max(1, math.ceil(_amount(resources, "cpu")))
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "PET_NNODES", "value": str(count_nodes(job, runtime))},
        {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-{REPLICATED_JOB}-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
    ]


def _amount(resources: Object, name: str) -> float:
    said = str((resources.get("requests") or {}).get(name) or (resources.get("limits") or {}).get(name) or 0)
    return float(said.removesuffix("m")) / (1000 if said.endswith("m") else 1)


def _overrides(job: Object) -> Iterator[tuple[str, str, Object]]:
    """Yield the field's name, the replicated job it is for, and what it changes in the pod template."""
    spec = job["spec"]
    for override in spec.get("podSpecOverrides", []):
        pod = {name: value for name, value in override.items() if name != "targetJobs"}
        for target in override["targetJobs"]:
            yield "podSpecOverrides", target["name"], {"spec": pod}
    for override in spec.get("podTemplateOverrides", []):
        for target in override["targetJobs"]:
            template = {name: override[name] for name in ("metadata", "spec") if name in override}
            yield "podTemplateOverrides", target["name"], template
    for patch in spec.get("runtimePatches", []):
        jobs = patch.get("trainingRuntimeSpec", {}).get("template", {}).get("spec", {}).get("replicatedJobs", [])
        for replicated in jobs:
            template = replicated.get("template", {}).get("spec", {}).get("template", {})
            yield "runtimePatches", replicated["name"], template


def _merged(base: Any, patch: Any, name: str = "") -> Any:
    """Return ``base`` after a strategic merge: mappings by key, lists of named things by their name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        names = [*base, *(key for key in patch if key not in base)]
        return {key: _merged(base[key], patch[key], key) if key in base and key in patch
                else copy.deepcopy(base.get(key, patch.get(key))) for key in names}  # fmt: skip
    if isinstance(base, list) and name in MERGE_KEYS:
        key = MERGE_KEYS[name]
        merged = {item[key]: item for item in base}
        for item in patch:
            merged[item[key]] = _merged(merged[item[key]], item) if item[key] in merged else copy.deepcopy(item)
        return list(merged.values())
    return copy.deepcopy(patch)
