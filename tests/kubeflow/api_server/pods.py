"""The pods of a job: scheduler and kubelet in one. Each pod goes from Pending to its end on a thread of its own."""

import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kubeflow.api_server.containers import Container, Log, Sight
from tests.kubeflow.api_server.events import Recorder
from tests.kubeflow.api_server.faults import Faults, Obstacle
from tests.kubeflow.api_server.resources import Store, now
from tests.kubeflow.api_server.runtime import CONTAINER, MASTER_PORT

Object = dict[str, Any]
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
NODE = "node-1.example"
PREEMPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "PreemptionByScheduler",
    "message": "default-scheduler: preempting to accommodate a higher priority pod",
}
# Between two starts of a container that fails; a kubelet waits ten seconds and more.
RESTART_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What pods run on."""

    store: Store
    faults: Faults
    recorder: Recorder
    folder: Path
    claims: Mapping[str, Path]
    """Where each PersistentVolumeClaim lies."""
    grace_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PodPlan:
    """A pod to be made."""

    namespace: str
    job: str
    index: int
    template: Object
    owner: Object
    master_port: int
    restarts: bool
    """``restartPolicy: OnFailure``: a container that fails is started again in its place."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Pod:
    """One pod, from its creation to its end."""

    def __init__(self, plan: PodPlan, node: Node, may_restart: Callable[[], bool]) -> None:
        self.plan = plan
        self.node = node
        self.stopping = threading.Event()
        self.logs: list[Log] = []
        self.preempted = False
        self._may_restart = may_restart
        self._container: Container | None = None
        self._restarts = 0
        self.object = node.store.create("pods", _pod(plan))
        self.name: str = self.object["metadata"]["name"]

    @property
    def status(self) -> Object:
        """The pod's status; empty once the pod is gone."""
        if not self.node.store.has("pods", self.plan.namespace, self.name):
            return {}
        status: Object = self.node.store.get("pods", self.plan.namespace, self.name)["status"]
        return status

    @property
    def is_running(self) -> bool:
        """Whether the container runs."""
        return any("running" in status["state"] for status in self.status.get("containerStatuses", []))

    def run(self) -> int | None:
        """Run to the end; return the exit code, or ``None`` if it never started or was deleted."""
        if not self._schedule() or not self._pull():
            return None
        while True:
            code = self._run_container()
            if code and not self.stopping.is_set() and self.plan.restarts and self._may_restart():
                self._restarts += 1
                self._event("BackOff", f"Back-off restarting failed container {CONTAINER}", "Warning")
                self.stopping.wait(RESTART_SECONDS)
                continue
            self._set(phase="Failed" if code else "Succeeded", conditions=self._conditions("PodCompleted"))
            return code

    def stop(self) -> None:
        """Take the pod away as a deletion does: SIGTERM, the grace period, SIGKILL, and then it is no more."""
        if not self.node.store.has("pods", self.plan.namespace, self.name):
            return
        self.node.store.update(
            "pods", self.plan.namespace, self.name, lambda pod: pod["metadata"].setdefault("deletionTimestamp", now())
        )
        self.stopping.set()
        if self._container is not None:
            self._event("Killing", f"Stopping container {CONTAINER}")
            self._container.stop(self.node.grace_seconds)

    def remove(self) -> None:
        """Remove the object."""
        if self.node.store.has("pods", self.plan.namespace, self.name):
            self.node.store.delete("pods", self.plan.namespace, self.name)

    def preempt(self) -> None:
        """Let a pod of higher priority take the place of this one."""
        self.preempted = True
        self._set(conditions=[*self._conditions("ContainersReady"), PREEMPTED])
        self._event("Preempted", f"Preempted by pod 0a1b on node {NODE}")
        self.stop()

    def exhaust_memory(self) -> None:
        """Let the kernel kill the container."""
        assert self._container is not None
        self._container.exhaust_memory()

    def _schedule(self) -> bool:
        volumes = self.plan.template["spec"].get("volumes", [])
        claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
        missing = [name for name in claims if name not in self.node.claims]
        if missing:
            return self._wait_unscheduled(f'persistentvolumeclaim "{missing[0]}" not found', lambda: True)
        if self.node.faults.obstacle is Obstacle.NO_GPU:
            message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 "
            message += "No preemption victims found for incoming pod."
            return self._wait_unscheduled(message, self._held_by(Obstacle.NO_GPU))
        if self.node.faults.obstacle is Obstacle.UNBOUND_CLAIM:
            message = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
            return self._wait_unscheduled(message, self._held_by(Obstacle.UNBOUND_CLAIM))
        return True

    def _wait_unscheduled(self, message: str, held: Callable[[], bool]) -> bool:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._set(conditions=[condition])
        self._event("FailedScheduling", message, "Warning")
        return self._wait_while(held)

    def _pull(self) -> bool:
        self._event("Scheduled", f"Successfully assigned {self.plan.namespace}/{self.name} to {NODE}")
        image = self.plan.template["spec"]["containers"][0]["image"]
        self._set(conditions=self._conditions("PodScheduled"), state={"waiting": {"reason": "ContainerCreating"}})
        self._event("Pulling", f'Pulling image "{image}"')
        if self.node.faults.obstacle is Obstacle.IMAGE:
            why = f'Failed to pull image "{image}": rpc error: code = NotFound desc = manifest unknown'
            self._event("Failed", why, "Warning")
            self._set(state={"waiting": {"reason": "ErrImagePull", "message": why}})
            message = f'Back-off pulling image "{image}"'
            self._event("BackOff", message)
            self._set(state={"waiting": {"reason": "ImagePullBackOff", "message": message}})
            if not self._wait_while(self._held_by(Obstacle.IMAGE)):
                return False
        self._event("Pulled", f'Successfully pulled image "{image}" in 1.2s')
        return not self.stopping.is_set()

    def _held_by(self, obstacle: Obstacle) -> Callable[[], bool]:
        return lambda: self.node.faults.obstacle is obstacle

    def _wait_while(self, held: Callable[[], bool]) -> bool:
        while held() and not self.stopping.is_set():
            self.stopping.wait(0.05)
        return not self.stopping.is_set()

    def _run_container(self) -> int:
        spec = self.plan.template["spec"]
        folder = self.node.folder / self.name
        sight = Sight.of(spec, self.node.claims, folder)
        container = Container(spec["containers"][0], self._environment(), sight, folder)
        self.logs.append(container.log)
        started = now()
        problem = container.start()
        self._container = container
        if problem is None:
            self._event("Started", f"Started container {CONTAINER}")
            self._set(phase="Running", conditions=self._conditions("Ready"), state={"running": {"startedAt": started}})
            if self.stopping.is_set():
                container.stop(self.node.grace_seconds)
        code = container.wait()
        reason = "StartError" if problem else "OOMKilled" if container.killed_for_memory else "Error"
        ended = {"exitCode": code, "reason": reason if code else "Completed", "startedAt": started}
        ended |= {"finishedAt": now()} | ({"message": problem} if problem else {})
        self._set(state={"terminated": ended})
        return code

    def _environment(self) -> dict[str, str]:
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self.plan.namespace,
            f"metadata.annotations['{INDEX_ANNOTATION}']": str(self.plan.index),
            "spec.nodeName": NODE,
            "status.podIP": "127.0.0.1",
        }
        variables = {"HOSTNAME": f"{self.plan.job}-node-0-{self.plan.index}"}
        for entry in self.plan.template["spec"]["containers"][0]["env"]:
            source = entry.get("valueFrom", {})
            # There are no secrets here; one that must exist is a mistake of the test.
            if "secretKeyRef" in source and source["secretKeyRef"]["optional"]:
                continue
            variables[entry["name"]] = fields[source["fieldRef"]["fieldPath"]] if source else entry.get("value", "")
        # This machine has no cluster's name server, and other tests listen on Trainer's port.
        variables["PET_MASTER_ADDR"] = "127.0.0.1"
        if variables["PET_MASTER_PORT"] == str(MASTER_PORT):
            variables["PET_MASTER_PORT"] = str(self.plan.master_port)
        return variables

    def _conditions(self, reached: str) -> list[Object]:
        ready = "True" if reached == "Ready" else "False"
        types = {"PodScheduled": "True", "Initialized": "True", "ContainersReady": ready, "Ready": ready}
        conditions = [{"type": name, "status": status, "lastTransitionTime": now()} for name, status in types.items()]
        return [*conditions, PREEMPTED] if self.preempted else conditions

    def _set(
        self, *, phase: str | None = None, conditions: list[Object] | None = None, state: Object | None = None
    ) -> None:
        def change(pod: Object) -> None:
            status = pod["status"]
            status["phase"] = phase or status["phase"]
            status["conditions"] = conditions or status.get("conditions", [])
            if state is not None:
                previous = (status.get("containerStatuses") or [{}])[0]
                status["containerStatuses"] = [self._container_status(previous, state)]

        if self.node.store.has("pods", self.plan.namespace, self.name):
            self.node.store.update("pods", self.plan.namespace, self.name, change)

    def _container_status(self, previous: Object, state: Object) -> Object:
        last = previous.get("lastState", {})
        if "running" in state and "terminated" in previous.get("state", {}):
            last = previous["state"]
        return {
            "name": CONTAINER,
            "image": self.plan.template["spec"]["containers"][0]["image"],
            "imageID": "",
            "ready": "running" in state,
            "started": "running" in state,
            "restartCount": self._restarts,
            "state": state,
            "lastState": last,
        }

    def _event(self, reason: str, message: str, kind: str = "Normal") -> None:
        self.node.recorder.record("Pod", self.object["metadata"], reason, message, kind)


def _pod(plan: PodPlan) -> Object:
    """Return a new pod with the names and labels that JobSet and the Job controller give."""
    child = f"{plan.job}-node-0"
    template = plan.template.get("metadata", {})
    labels = {
        **template.get("labels", {}),
        "batch.kubernetes.io/controller-uid": plan.owner["uid"],
        INDEX_ANNOTATION: str(plan.index),
        "batch.kubernetes.io/job-name": child,
        "controller-uid": plan.owner["uid"],
        "job-name": child,
        "jobset.sigs.k8s.io/global-replicas": "1",
        "jobset.sigs.k8s.io/job-index": "0",
        "jobset.sigs.k8s.io/jobset-name": plan.job,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "jobset.sigs.k8s.io/replicatedjob-replicas": "1",
        "jobset.sigs.k8s.io/restart-attempt": "0",
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": child, "uid": plan.owner["uid"], "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{child}-{plan.index}-{secrets.token_hex(3)[:5]}",
            "namespace": plan.namespace,
            "labels": labels,
            "annotations": {**template.get("annotations", {}), INDEX_ANNOTATION: str(plan.index)},
            "ownerReferences": [owner],
        },
        "spec": plan.template["spec"],
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    }
