"""The API server as a test handles it: start, restart, and the way of a client in a pod to it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import yaml
from kubernetes import client
from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME, SERVICE_PORT_ENV_NAME, InClusterConfigLoader

from tests.kubeflow.api_server.cluster import NAMESPACE, Cluster
from tests.kubeflow.api_server.pods import Pod
from tests.kubeflow.api_server.server import ApiServer

T = TypeVar("T")

GRACE_SECONDS = 30.0
TRAINER = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "namespace": NAMESPACE, "plural": "trainjobs"}


class Service:
    """A cluster and its API server."""

    def __init__(self, folder: Path, version: str, claims: Mapping[str, Path]) -> None:
        self.cluster = Cluster(folder, version, claims, GRACE_SECONDS)
        self._server = ApiServer(self.cluster)
        self.port = self._server.port

    @property
    def environment(self) -> dict[str, str]:
        """What Kubernetes puts into every pod's environment."""
        return {SERVICE_HOST_ENV_NAME: "127.0.0.1", SERVICE_PORT_ENV_NAME: str(self.port)}

    def restart(self, down_seconds: float = 0.0) -> None:
        """Refuse connections for a while, and come back without the history that watches go on from."""
        self._server.stop()
        Event().wait(down_seconds)
        self.cluster.store.forget_history()
        self._server = ApiServer(self.cluster, self.port)
        self.cluster.faults.note("restart")

    def wait_for(self, what: Callable[[], T], seconds: float = 20.0) -> T:
        """Return the first true value of ``what``, looked at again as the cluster changes."""
        deadline = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < deadline, f"not within {seconds} s; events: {self.reasons()}"
            with self.cluster.store.changed:
                self.cluster.store.changed.wait(0.05)
        return value

    def condition(self, name: str) -> dict[str, Any]:
        """Return the condition that ended the job; empty, while it has not ended."""
        conditions = self.cluster.store.get("trainjobs", NAMESPACE, name).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] in ("Complete", "Failed")), {})

    def reasons(self) -> list[str]:
        """Return the reason of every event, oldest first."""
        changes = [change for change in self.cluster.store.history if change.resource == "events"]
        return [change.object["reason"] for change in changes]

    def pod(self, index: int = 0) -> Pod:
        """Return the newest pod of node ``index``."""
        return self.wait_for(lambda: next((one for one in self.cluster.pods[::-1] if one.plan.index == index), None))

    def running_pod(self, index: int = 0) -> Pod:
        """Return the newest pod of node ``index`` as soon as its container runs."""
        return self.wait_for(lambda: pod if (pod := self.pod(index)).is_running else None)

    def close(self) -> None:
        """Stop the server and every process of a pod."""
        self._server.stop()
        self.cluster.close()

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig that logs in with the account's token file and knows the authority."""
        account = self.cluster.account
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority": str(account / "ca.crt"),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"tokenFile": str(account / "token")}}],
        }
        path = account / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def api_client(self, *, as_step: bool = False) -> client.ApiClient:
        """Return the official client, configured as in a pod, of an administrator or of the step."""
        configuration = client.Configuration()
        loader = InClusterConfigLoader(
            token_filename=str(self.cluster.account / ("token" if as_step else "admin-token")),
            cert_filename=str(self.cluster.account / "ca.crt"),
            environ=self.environment,
        )
        loader.load_and_set(configuration)
        return client.ApiClient(configuration)

    def create(self, job: dict[str, Any], **options: Any) -> Any:
        """Create a TrainJob through the client."""
        return client.CustomObjectsApi(self.api_client()).create_namespaced_custom_object(
            **TRAINER, body=job, **options
        )
