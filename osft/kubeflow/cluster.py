"""What is asked of the API server about the TrainJob of a run, its pods and their events."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from osft.errors import ClusterError, ConfigError, one_line
from osft.kubeflow.connection import (
    CONFLICT,
    CONNECT_SECONDS,
    FORBIDDEN,
    MANIFESTS_HINT,
    NOT_FOUND,
    Connection,
    is_there_already,
)
from osft.kubeflow.trainjob import API_GROUP, API_VERSION

logger = logging.getLogger(__name__)

CRD_NAME = f"trainjobs.{API_GROUP}"
NODE_PODS = "jobset.sigs.k8s.io/jobset-name={job},jobset.sigs.k8s.io/replicatedjob-name=node"
# A watch that breaks off sooner than this without a change is waited out: a server in trouble is not asked the more.
MIN_WAIT_SECONDS = 1.0
# A right that is missing may be granted, or have been denied by mistake by an API server that had just started.
REFUSED_SECONDS = 300.0


class Cluster:
    """The API server, seen from one namespace."""

    def __init__(self) -> None:
        """Find the server and the namespace.

        Raises:
            ConfigError: if there is neither a service account nor a usable kubeconfig, or TLS would not be verified.
        """
        self._connection = Connection()
        self._ask_again_at: dict[str, float] = {}

    @property
    def namespace(self) -> str:
        """The namespace that jobs are created in."""
        return self._connection.namespace

    def hurry(self) -> None:
        """From now on try again at once: this process will be killed soon."""
        self._connection.hurry()

    def find_trainjob(self, name: str) -> dict[str, Any] | None:
        """Return the TrainJob; ``None`` if there is none."""
        return self._find(f"{self._trainjobs}/{name}")

    def create_trainjob(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a TrainJob and return it; ``None`` if one of its name is there already.

        Raises:
            ClusterError: if the server refuses it or does not know a field of it.
        """
        try:
            return self._connection.request("POST", self._trainjobs, [("fieldValidation", "Strict")], body=manifest)
        except ClusterError as error:
            if is_there_already(error):
                return None
            raise

    def check_trainjob(self, manifest: Mapping[str, Any]) -> None:
        """Have the server check a TrainJob as if to create it; one of its name may be there already.

        Raises:
            ClusterError: if the server refuses it or does not know a field of it.
        """
        query = [("dryRun", "All"), ("fieldValidation", "Strict")]
        try:
            self._connection.request("POST", self._trainjobs, query, body=manifest)
        except ClusterError as error:
            if not is_there_already(error):
                raise

    def try_trainjob(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Have the server pretend to create a TrainJob, and return what it would keep of it.

        Raises:
            ClusterError: if the server refuses it.
        """
        answer: dict[str, Any] = self._connection.request("POST", self._trainjobs, [("dryRun", "All")], body=manifest)
        return answer

    def delete_trainjob(self, name: str, uid: str) -> None:
        """Delete this very TrainJob; it may be gone, and another one of its name is left alone.

        Its pods end after it. In the foreground, with the job visible until they have, Trainer would take its missing
        JobSet for one to create, and the pods would come back.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._find(f"{self._trainjobs}/{name}", method="DELETE", body=body)
        except ClusterError as error:
            if error.status != CONFLICT:
                raise
            logger.debug("%s", error)

    def has_runtime(self, name: str) -> bool:
        """Return whether the namespace itself defines the training runtime ``name``."""
        path = f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{self.namespace}/trainingruntimes/{name}"
        return self._unless_refused("read training runtimes", lambda: self._find(path)) is not None

    def find_crd(self) -> dict[str, Any] | None:
        """Return the CustomResourceDefinition of TrainJobs; ``None`` without the right to read it.

        Raises:
            ConfigError: if the cluster has no TrainJobs.
        """
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"
        try:
            return self._connection.request("GET", path)
        except ClusterError as error:
            if error.status == FORBIDDEN:
                logger.debug("the schema of TrainJobs may not be read: %s", error)
                return None
            if error.status == NOT_FOUND:
                raise ConfigError(
                    "this cluster has no TrainJobs: Kubeflow Trainer is not installed. Enable the component trainer of "
                    "RHOAI, or leave train_runtime empty to train inside the step."
                ) from error
            raise

    def list_node_pods(self, job_name: str) -> list[dict[str, Any]]:
        """Return the pods of the job's nodes, the oldest first; none without the right to list pods."""
        query = [("labelSelector", NODE_PODS.format(job=job_name))]
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        answer = self._unless_refused("list pods", lambda: self._connection.request("GET", path, query))
        pods = answer["items"] if answer else []
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def list_events(self, selector: str) -> list[dict[str, Any]]:
        """Return events by a field selector, e.g. ``involvedObject.name=x``; none without the right to list them."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        query = [("fieldSelector", selector)]
        answer = self._unless_refused("list events", lambda: self._connection.request("GET", path, query))
        return answer["items"] if answer else []

    def read_log(self, pod: str, container: str, query: Iterable[tuple[str, str]]) -> str | None:
        """Return a container's log; ``None`` if it has none (yet), or it may not be read.

        Args:
            pod: the pod's name.
            container: the container's name.
            query: what part of it, e.g. ``("tailLines", "20")``.
        """
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        try:
            answer = self._unless_refused(
                "read logs",
                lambda: self._connection.request("GET", path, [("container", container), *query], as_text=True),
            )
        except ClusterError as error:
            # 400: the container has not started. 404: the pod is gone.
            if error.status not in (400, NOT_FOUND):
                raise
            logger.debug("%s", error)
            return None
        text: str | None = answer
        return text

    def wait_for_change(self, job: Mapping[str, Any], seconds: int) -> None:
        """Wait until the TrainJob changes, at most ``seconds``.

        It is a watch from the version that ``job`` was read at. It only says when to look again, so a failure of it is
        no error. One that breaks off is a short wait; one that is refused is a long one, since the next will be as
        well: an API server that has started anew refuses every version from before (410) until the job changes.
        """
        start = time.monotonic()
        is_refused, line = False, b""
        try:
            line = self._read_watch(job["metadata"], seconds)
        except ApiException as error:
            is_refused = True
            logger.debug("the watch was refused: %s", one_line(error))
        except (HTTPError, OSError) as error:
            logger.debug("the watch broke off: %s", one_line(error))
        is_refused = is_refused or b'"ERROR"' in line
        if is_refused or not line:
            wait = seconds if is_refused else MIN_WAIT_SECONDS
            time.sleep(max(0.0, wait - (time.monotonic() - start)))

    def _read_watch(self, metadata: Mapping[str, Any], seconds: int) -> bytes:
        """Return the first line of a watch."""
        query = [
            ("watch", "true"), ("fieldSelector", f"metadata.name={metadata['name']}"),
            ("resourceVersion", str(metadata.get("resourceVersion", ""))), ("timeoutSeconds", str(seconds)),
        ]  # fmt: skip
        response = self._connection.send(
            "GET", self._trainjobs, query, stream=True, read_seconds=seconds + CONNECT_SECONDS
        )
        with contextlib.closing(response):
            line: bytes = response.readline()
        return line

    @property
    def _trainjobs(self) -> str:
        return f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{self.namespace}/trainjobs"

    def _find(self, path: str, *, method: str = "GET", body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self._connection.request(method, path, body=body)
        except ClusterError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return answer

    def _unless_refused(self, right: str, request: Callable[[], Any]) -> Any:
        """Return the answer, or ``None`` without the right to it, which is warned of once and tried again later."""
        if time.monotonic() < self._ask_again_at.get(right, 0.0):
            return None
        try:
            answer = request()
        except ClusterError as error:
            if error.status != FORBIDDEN:
                raise
            if right not in self._ask_again_at:
                logger.warning("this step may not %s in namespace %s. %s.", right, self.namespace, MANIFESTS_HINT)
            self._ask_again_at[right] = time.monotonic() + REFUSED_SECONDS
            return None
        self._ask_again_at.pop(right, None)
        return answer
