"""The TrainJob of a training run: what the user chooses, and the manifest that says it to Kubeflow Trainer.

The runtime (``torch-distributed`` on RHOAI) brings the pods and what torchrun reads from its environment (``PET_*``);
the job brings image, command, resources, and the shared volume. Where the volume goes into a manifest differs from one
version of Trainer to the next: :mod:`osft.kubeflow.versions`. Source: trainer.kubeflow.org/v1alpha1, as published in
kubeflow-trainer-api 2.0.1 to 2.3.0.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from osft.errors import ConfigError
from osft.kubeflow.versions import NODE, OverridesField, overrides

API_GROUP = "trainer.kubeflow.org"
API_VERSION = "v1alpha1"
GPU_RESOURCE = "nvidia.com/gpu"
NODE_MODULE = "osft.kubeflow.node"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PART_OF = {"app.kubernetes.io/part-of": "osft-continual-learning"}
# Two jobs with equal ones are the same job: a retried step follows the job that it finds.
FINGERPRINT_ANNOTATION = "osft-continual-learning/fingerprint"
RUN_ANNOTATION = "osft-continual-learning/run-id"
# JobSet names a pod <job>-node-0-<node>-<5 characters>, and a pod's name is a host name: 63 characters. This leaves
# room for 9999 nodes.
MAX_NAME_LENGTH = 63 - len("-node-0-9999-abcde")
NAME_PREFIX = "osft-"
DIGEST_LENGTH = 8
MEMORY_QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTPE]i?|k)?")
CPU_QUANTITY = re.compile(r"\d+m|\d+(\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJobSettings:
    """Which nodes train, and how they are asked for.

    Raises:
        ConfigError: if a value is not allowed; the message names the pipeline's parameter.
    """

    runtime: str
    """Name of the training runtime: a TrainingRuntime of the namespace, or a ClusterTrainingRuntime."""

    image: str
    """Image of the training pods, which has this library."""

    nodes: int = 1
    gpus_per_node: int = 1
    """GPUs, and processes, of a node; 0 trains on its CPUs in one process."""

    cpu: str = "8"
    """CPUs of a node."""

    memory: str = "64Gi"
    """Memory of a node."""

    workspace_claim: str = "osft-workspace"
    """The ReadWriteMany claim of the workspace."""

    queue: str = ""
    """Kueue's local queue; empty: the job is not Kueue's."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Further labels of the TrainJob."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """Tolerations as Kubernetes writes them, e.g. ``{"key": "nvidia.com/gpu", "operator": "Exists"}``."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the training pods. They can be read in the TrainJob: no place for secrets."""

    hub_secret: str = ""
    """Secret with ``HF_TOKEN``, taken where it exists; empty: none."""

    deadline_hours: float = 0.0
    """Hours after which the step deletes the job and fails; 0: never."""

    def __post_init__(self) -> None:
        if not self.runtime:
            raise ConfigError("train_runtime is empty. Give a training runtime's name, e.g. torch-distributed.")
        if not self.image:
            raise ConfigError("train_image is empty, and no step's image is known to take in its place. Name one.")
        for name, value, least in (("num_nodes", self.nodes, 1), ("gpus_per_node", self.gpus_per_node, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"train_{name}={value!r} is not a whole number of at least {least}.")
        for name, quantity, known in (("cpu", self.cpu, CPU_QUANTITY), ("memory", self.memory, MEMORY_QUANTITY)):
            if not known.fullmatch(quantity):
                raise ConfigError(f"train_{name}='{quantity}' is not a quantity of Kubernetes, e.g. 8 or 64Gi.")
        if not 0 <= self.deadline_hours < float("inf"):
            raise ConfigError(f"train_deadline_hours={self.deadline_hours} is not 0 or more and finite.")
        for name in ("labels", "node_selector", "env"):
            _require_texts(f"train_{name}", getattr(self, name))
        if not all(isinstance(toleration, Mapping) for toleration in self.tolerations):
            raise ConfigError(f"train_tolerations={list(self.tolerations)!r} is not a list of JSON objects.")

    def to_json(self) -> str:
        """Return the settings as a text that one step hands to the next."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> "TrainJobSettings":
        """Read back what :meth:`to_json` returned."""
        fields = orjson.loads(text)
        return cls(**{**fields, "tolerations": tuple(fields["tolerations"])})

    @property
    def processes_per_node(self) -> int:
        """What torchrun starts on each node."""
        return max(1, self.gpus_per_node)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """One training run as a job: whose it is, and what it reads."""

    run_id: str
    settings: TrainJobSettings
    order_file: Path
    """The run's :class:`~osft.processes.order.WorkOrder`, on the workspace."""

    order_sha256: str
    """Hash of that file; another order makes another job. Empty while there is none, to check what else there is."""

    workspace: Path
    """Where the workspace is mounted, here and in the training pods."""

    inherited_env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the pods take over from the step; :attr:`TrainJobSettings.env` goes before them."""

    @property
    def name(self) -> str:
        """The job's name, always the same for one run."""
        return name_of_run(self.run_id)


def name_of_run(run_id: str) -> str:
    """Return the TrainJob's name of a pipeline run: a DNS label that starts with a letter.

    A run id of KFP is taken as it is; another one that does not fit is cut and told apart by its hash.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    name = NAME_PREFIX + plain
    if plain == run_id and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:DIGEST_LENGTH]
    kept = name[: MAX_NAME_LENGTH - DIGEST_LENGTH - 1].rstrip("-")
    return f"{kept}-{digest}"


def make_manifest(job: TrainJob, runtime_kind: str, overrides_field: OverridesField) -> dict[str, Any]:
    """Return the TrainJob as the API server takes it, without a namespace.

    Args:
        job: the training run.
        runtime_kind: ``TrainingRuntime`` or ``ClusterTrainingRuntime``.
        overrides_field: where this version of Trainer takes changes of the pods.
    """
    settings = job.settings
    spec = {
        "runtimeRef": {"apiGroup": API_GROUP, "kind": runtime_kind, "name": settings.runtime},
        "trainer": {
            "image": settings.image,
            "command": ["python", "-m", NODE_MODULE, str(job.order_file), str(settings.nodes)],
            "numNodes": settings.nodes,
            "numProcPerNode": settings.processes_per_node,
            "resourcesPerNode": _resources(settings),
            "env": _environment(job),
        },
        overrides_field.value: overrides(overrides_field, _pod_spec(job)),
    }
    labels = {**PART_OF, **settings.labels, **({QUEUE_LABEL: settings.queue} if settings.queue else {})}
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job.name,
            "labels": labels,
            "annotations": {FINGERPRINT_ANNOTATION: _fingerprint(job), RUN_ANNOTATION: job.run_id},
        },
        "spec": spec,
    }


def _fingerprint(job: TrainJob) -> str:
    """Return one sha256 over what this run was told, the order that its nodes read included.

    What the manifest has from the cluster is left out: a job that was created before Trainer was updated is still the
    same one. So is the deadline, which the step keeps itself.
    """
    settings = {name: value for name, value in asdict(job.settings).items() if name != "deadline_hours"}
    told = {"settings": settings, "order": job.order_sha256, "inherited_env": job.inherited_env}
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _resources(settings: TrainJobSettings) -> dict[str, dict[str, str]]:
    """Return requests that equal the limits, so that a node's pod is neither throttled nor evicted by surprise."""
    amounts = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus_per_node:
        amounts[GPU_RESOURCE] = str(settings.gpus_per_node)
    return {"requests": amounts, "limits": dict(amounts)}


def _environment(job: TrainJob) -> list[dict[str, Any]]:
    plain = {**job.inherited_env, **job.settings.env}
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items())]
    if job.settings.hub_secret and "HF_TOKEN" not in plain:
        reference = {"name": job.settings.hub_secret, "key": "HF_TOKEN", "optional": True}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return variables


def _pod_spec(job: TrainJob) -> dict[str, Any]:
    """Return what the runtime does not bring: the workspace, memory at /dev/shm, and where the pods may run."""
    settings = job.settings
    mounts = [
        {"name": "osft-workspace", "mountPath": str(job.workspace)},
        # NCCL's processes talk through it, and a pod has 64 MiB of it by default.
        {"name": "osft-shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 not a temporary file of ours
    ]
    spec: dict[str, Any] = {
        "volumes": [
            {"name": "osft-workspace", "persistentVolumeClaim": {"claimName": settings.workspace_claim}},
            {"name": "osft-shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [{"name": NODE, "volumeMounts": mounts}],
    }
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    return spec


def _require_texts(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is of type {type(value).__name__}, not a JSON object from names to texts.")
    # Only names and types: a value may be a secret, and this is a log.
    wrong = [f"{key} ({type(text).__name__})" for key, text in value.items() if not isinstance(text, str)]
    if wrong:
        raise ConfigError(f'{name} has values that are no texts: {", ".join(wrong)}. Quote them: "1", "true".')
