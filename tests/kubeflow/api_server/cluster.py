"""A cluster: the store, who plays its jobs, and what a client in a pod finds of it (token, certificate, namespace)."""

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from ssl import SSLContext
from typing import Any

from tests.kubeflow.api_server import schema
from tests.kubeflow.api_server.containers import Log
from tests.kubeflow.api_server.errors import ApiError, denied, invalid, other_uid, strict_decoding
from tests.kubeflow.api_server.events import Recorder
from tests.kubeflow.api_server.faults import Faults
from tests.kubeflow.api_server.jobs import JobController
from tests.kubeflow.api_server.pods import Node, Pod
from tests.kubeflow.api_server.resources import Store, now
from tests.kubeflow.api_server.rights import Rights
from tests.kubeflow.api_server.runtime import refuse_unfit, torch_distributed
from tests.kubeflow.api_server.tls import make_server_context

Object = dict[str, Any]
NAMESPACE = "science"


class Cluster:
    """One cluster, with one version of Kubeflow Trainer.

    Args:
        folder: for the account's files and the containers.
        version: of Trainer, e.g. ``"2.1"``.
        claims: the PersistentVolumeClaims of the namespace, and where each lies.
        grace_seconds: what a pod has between SIGTERM and SIGKILL.
    """

    def __init__(self, folder: Path, version: str, claims: Mapping[str, Path], grace_seconds: float = 30.0) -> None:
        self.store = Store()
        self.faults = Faults()
        self.rights = Rights()
        self.requests: list[tuple[str, str]] = []
        self.version = version
        self.user = f"system:serviceaccount:{NAMESPACE}:pipeline-runner-dspa"
        self.controllers: dict[tuple[str, str], JobController] = {}
        self.played: list[JobController] = []
        self.account = folder / "serviceaccount"
        self.account.mkdir(parents=True)
        self.tls: SSLContext
        self.tls, authority = make_server_context(folder)
        (self.account / "ca.crt").write_bytes(authority)
        (self.account / "namespace").write_text(NAMESPACE)
        self.token = ""
        self.admin_token = secrets.token_urlsafe(24)
        (self.account / "admin-token").write_text(self.admin_token)
        self.rotate_token()
        self._node = Node(
            store=self.store, faults=self.faults, recorder=Recorder(self.store), folder=folder / "containers",
            claims=claims, grace_seconds=grace_seconds,
        )  # fmt: skip
        self.store.create("clustertrainingruntimes", torch_distributed())
        self.store.create("customresourcedefinitions", schema.custom_resource_definition(version))

    @property
    def pods(self) -> list[Pod]:
        """Every pod that there ever was, oldest first."""
        return [pod for controller in self.played for pod in controller.pods]

    def rotate_token(self) -> None:
        """Let the token expire, with the next one in the account's file."""
        self.token = secrets.token_urlsafe(24)
        (self.account / "token").write_text(self.token)

    def set_runtime(self, *, backoff_limit: int, restart_policy: str) -> None:
        """Change what the training runtime says of failures."""

        def change(runtime: Object) -> None:
            child = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
            child["backoffLimit"] = backoff_limit
            child["template"]["spec"]["restartPolicy"] = restart_policy

        self.store.update("clustertrainingruntimes", "", "torch-distributed", change)

    def create_job(self, namespace: str, job: Object, *, is_dry: bool, is_strict: bool) -> Object:
        """Admit a TrainJob, keep it, and start to play it."""
        name = job.get("metadata", {}).get("name", "")
        of_version = schema.train_job_schema(self.version)
        if is_strict and (unknown := list(schema.unknown_fields(job, of_version))):
            raise strict_decoding(unknown)
        admitted, causes = schema.admit(job, of_version)
        if causes:
            raise invalid("TrainJob", name, causes)
        refuse_unfit(admitted)
        admitted["metadata"]["namespace"] = namespace
        # The status is a subresource: what a client says of it at creation is dropped.
        admitted.pop("status", None)
        runtime = self._find_runtime(namespace, admitted["spec"]["runtimeRef"])
        if is_dry:
            return admitted
        created = self.store.create("trainjobs", admitted)
        controller = JobController(created, runtime, self._node)
        self.controllers[namespace, name] = controller
        self.played.append(controller)
        controller.start()
        return created

    def delete_job(self, namespace: str, name: str, policy: str, *, uid: str = "") -> Object:
        """Delete a TrainJob, this very one if ``uid`` says so.

        Its pods go after it, or before it with the policy ``Foreground``.
        """
        job = self.store.get("trainjobs", namespace, name)
        if uid not in ("", job["metadata"]["uid"]):
            raise other_uid("trainjobs", name, uid, job["metadata"]["uid"])
        controller = self.controllers.pop((namespace, name), None)
        if policy == "Foreground":
            self.store.update("trainjobs", namespace, name, _mark_deleted)
        else:
            self.store.delete("trainjobs", namespace, name)

        def take_away() -> None:
            if controller is not None:
                controller.delete(orphan=policy == "Orphan")
            if policy == "Foreground":
                self.store.delete("trainjobs", namespace, name)

        threading.Thread(target=take_away, daemon=True).start()
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "group": "trainer.kubeflow.org", "uid": job["metadata"]["uid"]}}  # fmt: skip

    def find_log(self, namespace: str, name: str, *, previous: bool) -> Log:
        """Return the log of a pod's container, or of its last but one run.

        Raises:
            ApiError: 404, if there is no such pod; 400, if its container has not run.
        """
        self.store.get("pods", namespace, name)
        (pod,) = [pod for pod in self.pods if pod.name == name]
        back = 2 if previous else 1
        if len(pod.logs) < back:
            why = f'previous terminated container "node" in pod "{name}" not found'
            waiting = f'container "node" in pod "{name}" is waiting to start: ContainerCreating'
            raise ApiError(400, "BadRequest", why if previous else waiting)
        return pod.logs[-back]

    def close(self) -> None:
        """End every process."""
        for controller in self.played:
            controller.delete()

    def _find_runtime(self, namespace: str, reference: Object) -> Object:
        is_own = reference["kind"] == "TrainingRuntime"
        resource = "trainingruntimes" if is_own else "clustertrainingruntimes"
        try:
            return self.store.get(resource, namespace if is_own else "", reference["name"])
        except ApiError as error:
            why = f"spec.runtimeRef: Invalid value: {error}: specified {reference['kind']} must be created before"
            raise denied(f"{why} the TrainJob is created") from error


def _mark_deleted(job: Object) -> None:
    job["metadata"] |= {"deletionTimestamp": now(), "finalizers": ["foregroundDeletion"]}
