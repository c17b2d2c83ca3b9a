"""Events: what the parts of a cluster say about an object."""

import secrets
from typing import Any

from tests.kubeflow.api_server.resources import Store, now

API_VERSIONS = {
    "Pod": "v1",
    "Job": "batch/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
    "Workload": "kueue.x-k8s.io/v1beta1",
}


class Recorder:
    """Writes events into the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, kind: str, metadata: dict[str, Any], reason: str, message: str, severity: str = "Normal") -> None:
        """Write one event about the object of ``kind`` with this ``metadata``."""
        time = now()
        about = {
            "kind": kind,
            "apiVersion": API_VERSIONS[kind],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
        }
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": metadata["namespace"]},
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": severity,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "eventTime": None,
            "source": {"component": "cluster"},
            "reportingComponent": "cluster",
            "reportingInstance": "",
        }
        self._store.create("events", event)
