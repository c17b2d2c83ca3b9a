"""What is asked of the API server, and how a request lives through its bad moments.

Every request is tried again when the server is busy (429, after the time it asks for), fails (5xx) or cannot be
reached, for as long as an API server takes to restart; after a 401 the credentials are read anew, since a pod's token
is replaced every hour. In a pod the step's service account is used, elsewhere the file that ``KUBECONFIG`` names; TLS
is always verified. Answers are the JSON of Kubernetes, as dicts: https://kubernetes.io/docs/reference/kubernetes-api/
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.incluster_config import SERVICE_TOKEN_FILENAME
from tenacity import RetryCallState, Retrying, stop_after_delay, wait_random_exponential
from urllib3.exceptions import HTTPError

from osft.errors import ClusterError, ConfigError, one_line
from osft.kubeflow.trainjob import API_GROUP, API_VERSION

logger = logging.getLogger(__name__)

CRD_NAME = f"trainjobs.{API_GROUP}"
NODE_PODS = "jobset.sigs.k8s.io/jobset-name={job},jobset.sigs.k8s.io/replicatedjob-name=node"
# Seconds. An OpenShift API server that restarts, or loses its leader, is away for some minutes.
OUTAGE_SECONDS = 900.0
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
WAIT_BETWEEN_TRIES = wait_random_exponential(multiplier=0.5, max=30.0)
# A server that asks for more patience than this is not waited for that long.
MAX_RETRY_AFTER_SECONDS = 120.0
# A watch that ends sooner than this without a change is waited out: a server in trouble is not asked the more for it.
MIN_WAIT_SECONDS = 1.0
BUSY_OR_FAILING = (429, 500, 502, 503, 504)
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 401, 403, 404, 409
# A fresh token is there when a token has expired; where there is none, waiting brings none.
MAX_TRIES_UNAUTHORIZED = 4
# What the API server says when a webhook, such as Trainer's, refused an object; the status is most often 403 too.
DENIED_BY_WEBHOOK = "denied the request"
NAMESPACE_FILE = Path(SERVICE_TOKEN_FILENAME).with_name("namespace")
MANIFESTS_HINT = "Apply images/manifests for the service account of the pipeline's steps"


class Cluster:
    """The API server, seen from one namespace."""

    def __init__(self) -> None:
        """Find the server and the namespace.

        Raises:
            ConfigError: if there is neither a service account nor a usable kubeconfig, or TLS would not be verified.
        """
        self._connect()
        self._refused: set[str] = set()

    @property
    def namespace(self) -> str:
        """The namespace that jobs are created in."""
        return self._namespace

    def find_trainjob(self, name: str) -> dict[str, Any] | None:
        """Return the TrainJob; ``None`` if there is none."""
        return self._find(f"{self._trainjobs}/{name}")

    def create_trainjob(self, manifest: Mapping[str, Any]) -> None:
        """Create a TrainJob.

        Raises:
            ClusterError: if the server refuses it or does not know a field of it; status 409: one of its name is there.
        """
        self._request("POST", self._trainjobs, [("fieldValidation", "Strict")], body=manifest)

    def try_trainjob(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Have the server check a TrainJob without creating it, and return what it would keep of it.

        Raises:
            ClusterError: if the server refuses it; status 409: there is one of that name.
        """
        answer: dict[str, Any] = self._request("POST", self._trainjobs, [("dryRun", "All")], body=manifest)
        return answer

    def delete_trainjob(self, name: str) -> None:
        """Delete a TrainJob, which stays visible until its pods have ended; there need not be one."""
        # Foreground: while the job is visible its pods may still write, and a new one must wait for them.
        self._find(f"{self._trainjobs}/{name}", method="DELETE", body={"propagationPolicy": "Foreground"})

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
            return self._request("GET", path)
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
        answer = self._unless_refused("list pods", lambda: self._request("GET", path, query))
        pods = answer["items"] if answer else []
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def list_events(self, selector: str) -> list[dict[str, Any]]:
        """Return events by a field selector, e.g. ``involvedObject.name=x``; none without the right to list them."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        answer = self._unless_refused("list events", lambda: self._request("GET", path, [("fieldSelector", selector)]))
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
                "read logs", lambda: self._request("GET", path, [("container", container), *query], as_text=True)
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

        It is a watch from the version that ``job`` was read at. It only says when to look again, so one that the
        server drops, refuses (410: too old a version) or fails to open is no error, but a short wait.
        """
        metadata = job["metadata"]
        query = [
            ("watch", "true"), ("fieldSelector", f"metadata.name={metadata['name']}"),
            ("resourceVersion", str(metadata.get("resourceVersion", ""))), ("timeoutSeconds", str(seconds)),
        ]  # fmt: skip
        start = time.monotonic()
        line = b""
        try:
            response = self._send("GET", self._trainjobs, query, stream=True, read_seconds=seconds + CONNECT_SECONDS)
            with contextlib.closing(response):
                line = response.readline()
        except (ApiException, HTTPError, OSError) as error:
            logger.debug("the watch of %s ended: %s", metadata["name"], one_line(error))
        has_changed = line and b'"ERROR"' not in line
        if not has_changed:
            time.sleep(max(0.0, MIN_WAIT_SECONDS - (time.monotonic() - start)))

    @property
    def _trainjobs(self) -> str:
        return f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{self.namespace}/trainjobs"

    def _connect(self) -> None:
        configuration, self._namespace = _load_configuration()
        self._api = client.ApiClient(configuration)

    def _find(self, path: str, *, method: str = "GET", body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        try:
            return self._request(method, path, body=body)
        except ClusterError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def _unless_refused(self, right: str, request: Any) -> Any:
        """Return the answer, or ``None`` without the right to it, which is warned of once."""
        if right in self._refused:
            return None
        try:
            return request()
        except ClusterError as error:
            if error.status != FORBIDDEN:
                raise
            self._refused.add(right)
            logger.warning("this step may not %s in namespace %s. %s.", right, self.namespace, MANIFESTS_HINT)
            return None

    def _request(
        self,
        method: str,
        path: str,
        query: Iterable[tuple[str, str]] = (),
        *,
        body: Mapping[str, Any] | None = None,
        as_text: bool = False,
    ) -> Any:
        """Send a request until it is answered, and return the answer.

        Raises:
            ClusterError: if the server refuses it, or cannot be reached for :data:`OUTAGE_SECONDS`.
        """
        tries = Retrying(
            retry=_may_pass,
            wait=_seconds_to_wait,
            stop=stop_after_delay(OUTAGE_SECONDS),
            before_sleep=self._prepare_next_try,
            reraise=True,
        )
        try:
            answer = tries(self._send, method, path, list(query), body=body).data
        except (ApiException, HTTPError) as error:
            raise _as_cluster_error(error, f"{method} {path}") from error
        return answer.decode(errors="replace") if as_text else orjson.loads(answer)

    def _send(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        *,
        body: Mapping[str, Any] | None = None,
        stream: bool = False,
        read_seconds: float = READ_SECONDS,
    ) -> Any:
        """Send one request and return the response, whose body is still to be read if ``stream``."""
        response = self._api.call_api(
            path,
            method,
            query_params=query,
            header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(CONNECT_SECONDS, read_seconds),
        )
        if not stream:
            # A body that breaks off is a failed request too: it is read, and kept by the response, within the tries.
            _ = response.data
        return response

    def _prepare_next_try(self, state: RetryCallState) -> None:
        error = _error_of(state)
        if isinstance(error, ApiException) and error.status == UNAUTHORIZED:
            self._connect()
        logger.warning(
            "Kubernetes: %s; trying again in %.0f s",
            _describe(error),
            state.next_action.sleep if state.next_action else 0,
        )


def _load_configuration() -> tuple[client.Configuration, str]:
    """Return where the API server is and how to log in, read anew, and the namespace."""
    configuration = client.Configuration()
    kubeconfig = os.environ.get("KUBECONFIG")
    try:
        if kubeconfig is None and Path(SERVICE_TOKEN_FILENAME).is_file():
            config.load_incluster_config(client_configuration=configuration)
            namespace = NAMESPACE_FILE.read_text().strip()
        else:
            # The client's own default is the variable's value at the time it was imported.
            config.load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)
            _, active = config.list_kube_config_contexts(config_file=kubeconfig)
            namespace = active["context"].get("namespace", "default")
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"no way to the cluster: {one_line(error)}. Run this as a step of a pipeline, or set KUBECONFIG."
        ) from error
    if not configuration.verify_ssl:
        raise ConfigError(f"{kubeconfig}: insecure-skip-tls-verify is set. Give certificate-authority in its place.")
    # The tries here count and wait; those of urllib3 below them would do so unseen.
    configuration.retries = False
    return configuration, namespace


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _may_pass(state: RetryCallState) -> bool:
    """Return whether the same request may be answered later."""
    error = _error_of(state)
    if isinstance(error, ApiException):
        if error.status == UNAUTHORIZED:
            return state.attempt_number < MAX_TRIES_UNAUTHORIZED
        return error.status in BUSY_OR_FAILING
    return isinstance(error, HTTPError)


def _seconds_to_wait(state: RetryCallState) -> float:
    """Return the wait that the server asks for in ``Retry-After``, else one that grows."""
    error = _error_of(state)
    asked = error.headers.get("Retry-After") if isinstance(error, ApiException) and error.headers else None
    if asked is not None and asked.isdigit():
        return min(float(asked), MAX_RETRY_AFTER_SECONDS)
    return WAIT_BETWEEN_TRIES(state)


def _as_cluster_error(error: ApiException | HTTPError, request: str) -> ClusterError:
    if isinstance(error, HTTPError):
        return ClusterError(f"{request}: the API server cannot be reached ({one_line(error)}). Is the cluster up?")
    said = _describe(error)
    hint = {FORBIDDEN: f" {MANIFESTS_HINT}.", UNAUTHORIZED: " Log in again."}.get(error.status, "")
    if DENIED_BY_WEBHOOK in said:
        # Not for want of a right: what is wrong with the object is in its words.
        hint = " Mend the parameters that it names."
    return ClusterError(f"{request}: {said}.{hint}", status=error.status or None)


def _describe(error: BaseException | None) -> str:
    """Return what an API server says of a refused request, or what the network says."""
    if not isinstance(error, ApiException):
        return one_line(error) if error else "no answer"
    try:
        message = orjson.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        message = error.reason
    return f"{error.status} {' '.join(str(message).split()).rstrip('.')}"
