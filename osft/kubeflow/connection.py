"""The way to the API server, and how a request lives through its bad moments.

Every request is tried again when the server is busy (429, after the time it asks for), fails (5xx) or cannot be
reached, a connection that breaks off in the TLS handshake included, for as long as an API server takes to restart.
After a 401 the credentials are read anew, since a pod's token is replaced every hour, and the kubelet may be late. In a
pod the step's service account is used, elsewhere the file that ``KUBECONFIG`` names; TLS is always verified. Answers
are the JSON of Kubernetes, as dicts: https://kubernetes.io/docs/reference/kubernetes-api/
"""

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

logger = logging.getLogger(__name__)

# Seconds. An OpenShift API server that restarts, or loses its leader, is away for some minutes.
OUTAGE_SECONDS = 900.0
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
WAIT_BETWEEN_TRIES = wait_random_exponential(multiplier=0.5, max=30.0)
# A server that asks for more patience than this is not waited for that long.
MAX_RETRY_AFTER_SECONDS = 120.0
# A kubelet replaces a token some minutes before it expires, and may be late by one or two.
UNAUTHORIZED_SECONDS = 120.0
# Of a step that is being ended: between two tries, and in all, which is a pod's default grace period.
HURRIED_WAIT_SECONDS = 0.1
HURRIED_SECONDS = 30.0
BUSY_OR_FAILING = (429, 500, 502, 503, 504)
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 401, 403, 404, 409
# The client's status of a connection that TLS ended; only this one of its reasons lasts.
NO_TLS = 0
NOT_TRUSTED = "CERTIFICATE_VERIFY_FAILED"
# What the API server says when a webhook, such as Trainer's, refused an object; the status is most often 403 too.
DENIED_BY_WEBHOOK = "denied the request"
NAMESPACE_FILE = Path(SERVICE_TOKEN_FILENAME).with_name("namespace")
MANIFESTS_HINT = "Apply images/manifests for the service account of the pipeline's steps"


class Connection:
    """The API server, with the account of this process."""

    def __init__(self) -> None:
        """Find the server and the namespace.

        Raises:
            ConfigError: if there is neither a service account nor a usable kubeconfig, or TLS would not be verified.
        """
        self._connect()
        self._unauthorized_since: float | None = None
        self._is_hurried = False

    @property
    def namespace(self) -> str:
        """The namespace of the account."""
        return self._namespace

    def hurry(self) -> None:
        """From now on try again at once: this process will be killed soon."""
        self._is_hurried = True

    def request(
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
            retry=self._may_pass,
            wait=self._seconds_to_wait,
            stop=stop_after_delay(HURRIED_SECONDS if self._is_hurried else OUTAGE_SECONDS),
            before_sleep=self._prepare_next_try,
            reraise=True,
        )
        try:
            answer = tries(self.send, method, path, list(query), body=body).data
        except (ApiException, HTTPError) as error:
            raise _as_cluster_error(error, f"{method} {path}") from error
        return answer.decode(errors="replace") if as_text else orjson.loads(answer)

    def send(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        *,
        body: Mapping[str, Any] | None = None,
        stream: bool = False,
        read_seconds: float = READ_SECONDS,
    ) -> Any:
        """Send one request, once, and return the response, whose body is still to be read if ``stream``.

        Raises:
            ApiException: if it is refused.
            HTTPError: of urllib3, if the server cannot be reached or breaks off.
        """
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

    def _connect(self) -> None:
        configuration, self._namespace = _load_configuration()
        self._api = client.ApiClient(configuration)

    def _may_pass(self, state: RetryCallState) -> bool:
        """Return whether the same request may be answered later."""
        error = _error_of(state)
        if isinstance(error, ApiException) and error.status == UNAUTHORIZED:
            self._unauthorized_since = self._unauthorized_since or time.monotonic()
            return time.monotonic() - self._unauthorized_since < UNAUTHORIZED_SECONDS
        self._unauthorized_since = None
        if isinstance(error, ApiException):
            return error.status in BUSY_OR_FAILING or (error.status == NO_TLS and not _is_untrusted(error))
        return isinstance(error, HTTPError)

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        """Return the wait that the server asks for in ``Retry-After``, else one that grows."""
        if self._is_hurried:
            return HURRIED_WAIT_SECONDS
        error = _error_of(state)
        asked = error.headers.get("Retry-After") if isinstance(error, ApiException) and error.headers else None
        if asked is not None and asked.isdigit():
            return min(float(asked), MAX_RETRY_AFTER_SECONDS)
        return WAIT_BETWEEN_TRIES(state)

    def _prepare_next_try(self, state: RetryCallState) -> None:
        error = _error_of(state)
        if isinstance(error, ApiException) and error.status == UNAUTHORIZED:
            self._connect()
        logger.warning(
            "Kubernetes: %s; trying again in %.0f s",
            _describe(error),
            state.next_action.sleep if state.next_action else 0,
        )


def is_there_already(error: ClusterError) -> bool:
    """Return whether an object was not created because there is one of its name; not every conflict says so."""
    return error.status == CONFLICT and _status_of(error.__cause__).get("reason") == "AlreadyExists"


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


def _is_untrusted(error: ApiException) -> bool:
    """Return whether the server's certificate is not one to trust."""
    return error.status == NO_TLS and NOT_TRUSTED in str(error.reason)


def _as_cluster_error(error: ApiException | HTTPError, request: str) -> ClusterError:
    if isinstance(error, HTTPError):
        return ClusterError(f"{request}: the API server cannot be reached ({one_line(error)}). Is the cluster up?")
    said = _describe(error)
    hint = {FORBIDDEN: f" {MANIFESTS_HINT}.", UNAUTHORIZED: " Log in again."}.get(error.status, "")
    if DENIED_BY_WEBHOOK in said:
        # Not for want of a right: what is wrong with the object is in its words.
        hint = " Mend the parameters that it names."
    if _is_untrusted(error):
        hint = " Give the authority that signed its certificate as certificate-authority of the kubeconfig."
    return ClusterError(f"{request}: {said}.{hint}", status=error.status or None)


def _describe(error: BaseException | None) -> str:
    """Return what an API server says of a refused request, or what the network says."""
    if not isinstance(error, ApiException):
        return one_line(error) if error else "no answer"
    message = " ".join(str(_status_of(error).get("message", error.reason)).split()).rstrip(".")
    return f"{error.status} {message}" if error.status else message


def _status_of(error: BaseException | None) -> dict[str, Any]:
    """Return the Status object that a refusal came with; empty if it came without."""
    body = error.body if isinstance(error, ApiException) else None
    try:
        status = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        # A proxy's page.
        return {}
    return status if isinstance(status, dict) else {}
