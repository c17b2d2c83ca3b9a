"""The controllers of TrainJob, JobSet and Job in one, with Kueue before them: a thread for each TrainJob."""

import threading
from typing import Any

from tests.kubeflow.api_server.faults import Obstacle
from tests.kubeflow.api_server.pods import Node, Pod, PodPlan, free_port
from tests.kubeflow.api_server.resources import now
from tests.kubeflow.api_server.runtime import REPLICATED_JOB, count_nodes, pod_template

Object = dict[str, Any]
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# What Kubernetes takes when a Job does not say it, and JobSet when a pod does not.
DEFAULT_BACKOFF_LIMIT = 6
DEFAULT_RESTART_POLICY = "OnFailure"


class JobController:
    """Plays one TrainJob from its creation to its end."""

    def __init__(self, job: Object, runtime: Object, node: Node) -> None:
        self.job = job
        self.metadata: Object = job["metadata"]
        self.node = node
        self.pods: list[Pod] = []
        self._runtime = runtime
        (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        child = replicated["template"]["spec"]
        self._backoff_limit = child.get("backoffLimit", DEFAULT_BACKOFF_LIMIT)
        policy = child["template"]["spec"].get("restartPolicy", DEFAULT_RESTART_POLICY)
        self._restarts = policy == DEFAULT_RESTART_POLICY
        self._failures = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._deleted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start to play."""
        self._thread.start()

    def delete(self, *, orphan: bool = False) -> None:
        """Take the pods away, unless they are to stay."""
        self._deleted.set()
        if not orphan:
            self._stop_pods()
            self._thread.join()
            for pod in self.pods:
                pod.remove()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end; return whether it came."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if not self._admit() or not self._pass_quota():
            return
        template = pod_template(self.job, self._runtime)
        nodes = count_nodes(self.job, self._runtime)
        port = free_port()
        threads = []
        for index in range(nodes):
            plan = PodPlan(
                namespace=self.metadata["namespace"], job=self.metadata["name"], index=index, template=template,
                owner=self.metadata, master_port=port, restarts=self._restarts,
            )  # fmt: skip
            threads.append(threading.Thread(target=self._run_index, args=(plan,), daemon=True))
            threads[-1].start()
        self._set_counts(active=1)
        for thread in threads:
            thread.join()
        if not self._deleted.is_set():
            self._conclude()

    def _admit(self) -> bool:
        """Wait for Kueue, or for whoever else suspended the job."""
        if self.node.faults.obstacle is Obstacle.KUEUE:
            self._wait_for_kueue()
        if self.job["spec"].get("suspend"):
            self._set_condition("Suspended", "True", "Suspended", "TrainJob is suspended")
            self._set_counts(suspended=1)
        while self._spec().get("suspend") and not self._deleted.is_set():
            self._deleted.wait(0.05)
        return not self._deleted.is_set()

    def _wait_for_kueue(self) -> None:
        name = self.metadata["name"]
        workload = {"name": f"trainjob-{name}-0a1b2", "namespace": self.metadata["namespace"]}
        queue = self.metadata.get("labels", {}).get(QUEUE_LABEL, "default")
        self._set_suspend(True)
        self._set_condition("Suspended", "True", "Suspended", "TrainJob is suspended")
        full = f"Created Workload: {workload['namespace']}/{workload['name']}"
        self.node.recorder.record("TrainJob", self.metadata, "CreatedWorkload", full)
        why = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu in flavor l40s, "
        why += "2 more needed"
        self.node.recorder.record("Workload", workload, "Pending", why, "Warning")
        while self.node.faults.obstacle is Obstacle.KUEUE and not self._deleted.is_set():
            self._deleted.wait(0.05)
        quota = f"Quota reserved in ClusterQueue {queue}, wait time since queued was 1s"
        self.node.recorder.record("Workload", workload, "QuotaReserved", quota)
        admitted = f"Admitted by ClusterQueue {queue}, wait time since reservation was 0s"
        self.node.recorder.record("Workload", workload, "Admitted", admitted)
        self._set_suspend(False)
        self._set_condition("Suspended", "False", "Resumed", "TrainJob is resumed")

    def _pass_quota(self) -> bool:
        child = {**self.metadata, "name": f"{self.metadata['name']}-{REPLICATED_JOB}-0"}
        if self.node.faults.obstacle is Obstacle.QUOTA:
            message = f'Error creating: pods "{child["name"]}-0-x7k2p" is forbidden: exceeded quota: gpus, requested: '
            message += "requests.nvidia.com/gpu=2, used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
            self.node.recorder.record("Job", child, "FailedCreate", message, "Warning")
        while self.node.faults.obstacle is Obstacle.QUOTA and not self._deleted.is_set():
            self._deleted.wait(0.05)
        return not self._deleted.is_set()

    def _run_index(self, plan: PodPlan) -> None:
        while not self._deleted.is_set() and not self._ended.is_set():
            with self._lock:
                pod = Pod(plan, self.node, self._may_go_on)
                self.pods.append(pod)
            if self._ended.is_set() or self._deleted.is_set():
                pod.stop()
            code = pod.run()
            if pod.stopping.is_set() or (code and plan.restarts):
                pod.remove()
            if code == 0 and not pod.stopping.is_set():
                return
            # A container that was started again in its place until the limit has been counted there.
            if code is not None and not self._ended.is_set() and not (plan.restarts and not pod.preempted):
                self._may_go_on()

    def _may_go_on(self) -> bool:
        """Count a failure; at the limit the Job has failed, and its other pods are taken away."""
        with self._lock:
            self._failures += 1
            if self._failures <= self._backoff_limit:
                return True
            first = not self._ended.is_set()
            self._ended.set()
        if first:
            child = {**self.metadata, "name": f"{self.metadata['name']}-{REPLICATED_JOB}-0"}
            message = "Job has reached the specified backoff limit"
            self.node.recorder.record("Job", child, "BackoffLimitExceeded", message, "Warning")
            threading.Thread(target=self._stop_pods, daemon=True).start()
        return False

    def _stop_pods(self) -> None:
        with self._lock:
            pods = list(self.pods)
        stopping = [threading.Thread(target=pod.stop, daemon=True) for pod in pods if self._is_active(pod)]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    def _is_active(self, pod: Pod) -> bool:
        if not self.node.store.has("pods", self.metadata["namespace"], pod.name):
            return False
        status = self.node.store.get("pods", self.metadata["namespace"], pod.name)["status"]
        return status["phase"] in ("Pending", "Running")

    def _conclude(self) -> None:
        name = self.metadata["name"]
        if self._ended.is_set():
            self._set_counts(failed=1)
            message = "jobset failed due to one or more job failures "
            message += f"(first failed job: {name}-{REPLICATED_JOB}-0)"
            self._set_condition("Failed", "True", "FailedJobs", message)
        else:
            self._set_counts(succeeded=1)
            self._set_condition("Complete", "True", "AllJobsCompleted", "jobset completed successfully")

    def _spec(self) -> Object:
        if not self.node.store.has("trainjobs", self.metadata["namespace"], self.metadata["name"]):
            return {}
        spec: Object = self.node.store.get("trainjobs", self.metadata["namespace"], self.metadata["name"])["spec"]
        return spec

    def _set_suspend(self, suspended: bool) -> None:
        def change(job: Object) -> None:
            job["spec"]["suspend"] = suspended

        self._update(change)

    def _set_condition(self, kind: str, status: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}

        def change(job: Object) -> None:
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            job["status"]["conditions"] = [*(one for one in conditions if one["type"] != kind), condition]

        self._update(change)

    def _set_counts(self, **counts: int) -> None:
        status = {
            "name": REPLICATED_JOB,
            "active": 0,
            "ready": 0,
            "succeeded": 0,
            "failed": 0,
            "suspended": 0,
            **counts,
        }

        def change(job: Object) -> None:
            job.setdefault("status", {})["jobsStatus"] = [status]

        self._update(change)

    def _update(self, change: Any) -> None:
        if self.node.store.has("trainjobs", self.metadata["namespace"], self.metadata["name"]):
            self.node.store.update("trainjobs", self.metadata["namespace"], self.metadata["name"], change)
