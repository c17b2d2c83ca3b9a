"""The one TrainJob of a run: found or created, replaced, deleted, never confused with another one.

The job's name is made of the run's id, so a step that is retried finds the job that it started. What it was told is in
the job's fingerprint: the same one is followed, another one, or one that failed, is replaced. A job of that name which
does not say that it is this run's is somebody else's, and is left alone.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from osft.errors import ConfigError, TrainingError
from osft.kubeflow.cluster import Cluster
from osft.kubeflow.failures import forget_failures
from osft.kubeflow.follow import SECONDS_BETWEEN_LOOKS, condition
from osft.kubeflow.pods import describe
from osft.kubeflow.trainjob import FINGERPRINT_ANNOTATION, RUN_ANNOTATION, TrainJob

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REMINDERS = 180.0
# A job whose creation was on its way when the step was told to end is looked for so often, and with such pauses.
CANCEL_LOOKS = 5
CANCEL_PAUSE_SECONDS = 0.1


class JobOfRun:
    """The TrainJob of a run, as it is on the cluster."""

    def __init__(self, cluster: Cluster, job: TrainJob) -> None:
        self._cluster = cluster
        self._job = job
        self._uid: str | None = None
        self._reminded_at = float("-inf")
        self._remaining = "it was not created yet"

    def find_or_create(self, manifest: Mapping[str, Any], deadline: float) -> str:
        """Leave the run's job there: the one that is, if it is the same and has not failed, else a new one.

        Args:
            manifest: the job.
            deadline: monotonic time after which it is given up.

        Returns:
            Its uid.

        Raises:
            ConfigError: if another run's job has the name.
            TrainingError: if the deadline passes.
        """
        self._uid = None
        uid = None
        while uid is None:
            found = self._cluster.find_trainjob(self._job.name)
            is_going = found is not None and "deletionTimestamp" in found["metadata"]
            # One that is there and stays is handed on also when it is too late: who follows it says so, and deletes it.
            if (found is None or is_going) and time.monotonic() >= deadline:
                raise TrainingError(too_late(self._job, self._remaining))
            if found is None:
                uid = self._create_unless_pods_remain(manifest)
            elif is_going:
                self._remind([f"the TrainJob (being deleted){_finalizers(found)}"])
                self._cluster.wait_for_change(found, SECONDS_BETWEEN_LOOKS)
            else:
                uid = self._adopt(found, manifest)
        return uid

    def delete(self) -> None:
        """Delete the job that was found or created last."""
        if self._uid:
            self._cluster.delete_trainjob(self._job.name, self._uid)

    def cancel(self) -> bool:
        """Delete the job before this process is killed; return whether there was one.

        One request if its uid is known. If not, its creation may be on its way: it is looked for some times.
        """
        self._cluster.hurry()
        if self._uid:
            self.delete()
            return True
        for _ in range(CANCEL_LOOKS):
            found = self._cluster.find_trainjob(self._job.name)
            if found and _annotation(found, RUN_ANNOTATION) == self._job.run_id:
                self._cluster.delete_trainjob(self._job.name, found["metadata"]["uid"])
                return True
            time.sleep(CANCEL_PAUSE_SECONDS)
        return False

    def _create_unless_pods_remain(self, manifest: Mapping[str, Any]) -> str | None:
        """Create the job, or wait: pods of the one before may still write where those of the new one would."""
        if pods := self._cluster.list_node_pods(self._job.name):
            self._remind([f"pod {pod['metadata']['name']}: {describe(pod)}{_finalizers(pod)}" for pod in pods])
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return None
        return self._create(manifest)

    def _create(self, manifest: Mapping[str, Any]) -> str | None:
        """Create the job and return its uid; ``None`` if there is one of its name by now."""
        settings = self._job.settings
        forget_failures(self._job.order_file)
        created = self._cluster.create_trainjob(manifest)
        if created is None:
            return None
        self._uid = created["metadata"]["uid"]
        logger.info(
            "created TrainJob %s: %d nodes with %d GPUs each, runtime %s",
            self._job.name, settings.nodes, settings.gpus_per_node, settings.runtime,
        )  # fmt: skip
        return self._uid

    def _adopt(self, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
        """Return the uid of the job that is there, if it is to be followed; delete it, if it is to be replaced."""
        uid: str = found["metadata"]["uid"]
        owner = _annotation(found, RUN_ANNOTATION)
        if owner != self._job.run_id:
            whose = f"of run {owner}" if owner else "of no run of this pipeline"
            raise ConfigError(
                f"there is a TrainJob {self._job.name} {whose} in namespace {self._cluster.namespace}. It is left "
                "alone: delete it, or start another run."
            )
        is_same = _annotation(found, FINGERPRINT_ANNOTATION) == _annotation(manifest, FINGERPRINT_ANNOTATION)
        if is_same and not condition(found, "Failed"):
            logger.info("following TrainJob %s, which this run has started already", self._job.name)
            self._uid = uid
            return uid
        logger.info("replacing TrainJob %s, which has failed or was told something else", self._job.name)
        self._cluster.delete_trainjob(self._job.name, uid)
        return None

    def _remind(self, remaining: list[str]) -> None:
        """Say now and then what a new job waits for."""
        self._remaining = f"what is left of the earlier TrainJob {self._job.name}: {'; '.join(remaining)}"
        if time.monotonic() - self._reminded_at >= SECONDS_BETWEEN_REMINDERS:
            self._reminded_at = time.monotonic()
            logger.info("waiting for %s", self._remaining)


def too_late(job: TrainJob, state: str) -> str:
    """Return what is said of a job whose deadline has passed."""
    return (
        f"TrainJob {job.name} has not ended within train_deadline_hours={job.settings.deadline_hours:g} of the step's "
        f"first try and is given up; its last state: {state}. Raise the deadline; or, to go on from the last "
        f"checkpoint, delete {job.order_file} and retry the step."
    )


def _annotation(thing: Mapping[str, Any], name: str) -> str | None:
    value: str | None = (thing["metadata"].get("annotations") or {}).get(name)
    return value


def _finalizers(thing: Mapping[str, Any]) -> str:
    finalizers = thing["metadata"].get("finalizers") or []
    return f", held by {', '.join(finalizers)}" if finalizers else ""
