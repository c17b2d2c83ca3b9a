"""Following a TrainJob to its end, in the log of the step that waits for it.

The job is looked at again and again, and each look asks anew for everything it needs: there is no state that a lost
connection could damage. Between two looks a watch tells when the job changes; the events of pods, their log and the
run's metrics are asked for at each look, so what they say is seen some seconds late at most.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import orjson

from osft.errors import ConfigError, DataError, OsftError, TrainingError, one_line
from osft.kubeflow.cluster import Cluster
from osft.kubeflow.events import explain
from osft.kubeflow.failures import first_failure
from osft.kubeflow.pods import (
    NodeEnd,
    NodeEnds,
    NodeLog,
    all_nodes_run,
    describe,
    is_running,
    newest_of_first_node,
    node_of,
)
from osft.kubeflow.trainjob import QUEUE_LABEL, TrainJob

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5
SECONDS_BETWEEN_PROGRESS = 30.0
# Of the pods that do not run, the events of these many are asked for; the others wait for the same.
PODS_TO_EXPLAIN = 3
# What scheduler, kubelet and taint manager call it when they take a pod away.
DISRUPTIONS = ("Preempted", "Evicted", "TaintManagerEviction")
# The end of metrics.jsonl; a line has some 300 bytes.
METRICS_TAIL_BYTES = 4096
STEP_FIELDS = {"step", "total_steps", "loss"}
# What a node says when the same node would say it again: the runtime may start it again, but that would not help. A
# missing path is none of these: it may be a hub that is away, or a volume that shows a new file late.
HOPELESS = (ConfigError, DataError)


class Outcome(Enum):
    """How following a job ended."""

    COMPLETE = auto()
    FAILED = auto()
    HOPELESS = auto()
    """A node said why it can never succeed; the job itself may still be trying."""

    TOO_LATE = auto()
    """The deadline has passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """The end of following a job."""

    outcome: Outcome
    reason: str
    """What the job says of it, or its last state."""

    node_ends: tuple[NodeEnd, ...]
    """Nodes that ended other than well since all of them last ran, the earliest first."""

    overcome_ends: tuple[NodeEnd, ...]
    """Those before that."""

    disrupted: bool
    """Whether the cluster took a pod away since: preempted, evicted, its machine drained."""

    failure: OsftError | None
    """Why the node that failed first did, if it has said so: read before the job's deletion makes others fail."""


def condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return the condition ``kind`` of a TrainJob if it holds."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


class Follower:
    """Looks at one TrainJob, and says what is new."""

    def __init__(self, cluster: Cluster, job: TrainJob, uid: str, progress: "Progress") -> None:
        """Prepare to follow ``job``, which is ``uid`` on the cluster and makes ``progress``."""
        self._cluster = cluster
        self._job = job
        self._uid = uid
        self._progress = progress
        self._ends = NodeEnds(cluster)
        self._log = NodeLog(cluster)
        self._pods: set[str] = set()
        self._said: dict[str, str] = {}

    def follow(self, deadline: float) -> JobEnd:
        """Follow the job until it has ended, cannot succeed, or the monotonic time is ``deadline``.

        Raises:
            TrainingError: if the job disappears.
        """
        while True:
            found = self._cluster.find_trainjob(self._job.name)
            if found is None or found["metadata"]["uid"] != self._uid:
                raise TrainingError(
                    f"TrainJob {self._job.name} is gone: somebody deleted it. Retry the step to go on from the last "
                    "checkpoint."
                )
            self._look(found)
            if end := self._end(found, deadline):
                return end
            # Never past the deadline, and a whole number as the API server wants it.
            seconds = max(1, int(min(SECONDS_BETWEEN_LOOKS, deadline - time.monotonic())))
            self._cluster.wait_for_change(found, seconds)

    def _look(self, found: Mapping[str, Any]) -> None:
        pods = self._cluster.list_node_pods(self._job.name)
        for pod in pods:
            name = pod["metadata"]["name"]
            self._pods.add(name)
            self._say(name, f"node {node_of(pod)} (pod {name}): {describe(pod)}")
            self._ends.note(pod)
        if all_nodes_run(pods, self._job.settings.nodes):
            self._ends.overcome_all()
            self._pods = {pod["metadata"]["name"] for pod in pods}
        first = newest_of_first_node(pods)
        if first is None or not self._log.show_new(first):
            self._progress.show_new()
        waiting = [pod for pod in pods if not is_running(pod)]
        if waiting or len(pods) < self._job.settings.nodes:
            self._explain_wait(found, [pod["metadata"]["name"] for pod in waiting])

    def _explain_wait(self, found: Mapping[str, Any], waiting: list[str]) -> None:
        """Say what Kubernetes has to say about pods that do not run, or do not exist yet."""
        name = self._job.name
        if condition(found, "Suspended"):
            queue = (found["metadata"].get("labels") or {}).get(QUEUE_LABEL)
            self._say("suspended", f"TrainJob {name} waits for Kueue to admit it" + (f" in {queue}" if queue else ""))
        about = [name, f"{name}-node-0", *waiting[:PODS_TO_EXPLAIN]]
        events = [event for one in about for event in self._cluster.list_events(f"involvedObject.name={one}")]
        # Kueue speaks of its own object, which it names after the job.
        events += [
            event
            for event in self._cluster.list_events("involvedObject.kind=Workload")
            if _object_of(event).startswith(f"trainjob-{name}-")
        ]
        for explanation in filter(None, map(explain, events)):
            # One text for all the pods that wait for the same.
            self._say(explanation.text, f"{explanation.about}: {explanation.text}", level=logging.WARNING, once=True)

    def _say(self, topic: str, text: str, *, level: int = logging.INFO, once: bool = False) -> None:
        if self._said.get(topic) != text and not (once and topic in self._said):
            self._said[topic] = text
            logger.log(level, "%s", text)

    def _end(self, found: Mapping[str, Any], deadline: float) -> JobEnd | None:
        for kind, outcome in (("Complete", Outcome.COMPLETE), ("Failed", Outcome.FAILED)):
            if ended := condition(found, kind):
                return self._as_end(outcome, f"{ended.get('reason', kind)}: {ended.get('message', '')}".rstrip(": ."))
        failure = first_failure(self._job.order_file)
        if isinstance(failure, HOPELESS):
            return self._as_end(Outcome.HOPELESS, str(failure))
        if time.monotonic() >= deadline:
            return self._as_end(Outcome.TOO_LATE, "; ".join(self._said.values()) or "no pod was seen")
        return None

    def _as_end(self, outcome: Outcome, reason: str) -> JobEnd:
        failure = first_failure(self._job.order_file)
        return JobEnd(
            outcome=outcome,
            reason=reason,
            node_ends=tuple(self._ends.in_order),
            overcome_ends=tuple(self._ends.overcome),
            disrupted=self._ends.disrupted or (outcome is Outcome.FAILED and self._has_disruption_event()),
            failure=failure,
        )

    def _has_disruption_event(self) -> bool:
        """Return whether a pod that was seen was taken away, for those that were gone at the next look."""
        events = self._cluster.list_events("involvedObject.kind=Pod")
        return any(event.get("reason") in DISRUPTIONS and _object_of(event) in self._pods for event in events)


def _object_of(event: Mapping[str, Any]) -> str:
    """Return the name of what an event is about."""
    name: str = (event.get("involvedObject") or {}).get("name") or ""
    return name


class Progress:
    """Shows the run's progress by its metrics on the workspace, for when there is no log to show."""

    def __init__(self, metrics_file: Path) -> None:
        """Take what is in the file now for known."""
        self._file = metrics_file
        self._step = self.read_step()
        self._last_shown = float("-inf")

    def read_step(self) -> int:
        """Return the last step that was taken; 0 before the first."""
        last = self._read_last()
        return last["step"] if last else 0

    def show_new(self) -> None:
        """Log the last step if it is a new one, and the last line is some time ago."""
        now = time.monotonic()
        last = self._read_last()
        if last is None or last["step"] == self._step or now - self._last_shown < SECONDS_BETWEEN_PROGRESS:
            return
        self._step, self._last_shown = last["step"], now
        logger.info("step %d of %d: loss %.4f", last["step"], last["total_steps"], last["loss"])

    def _read_last(self) -> dict[str, Any] | None:
        """Return the last whole line of the file; ``None`` without one, or if it cannot be read now."""
        try:
            with self._file.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - METRICS_TAIL_BYTES))
                # The last piece is empty, or a line that is still being written.
                lines = file.read().split(b"\n")[:-1]
            last = orjson.loads(lines[-1]) if lines else None
        except (OSError, orjson.JSONDecodeError) as error:
            # No file yet; or the volume shows a part of what a node has written, or zeros after a node was lost.
            logger.debug("%s cannot be read: %s", self._file.name, one_line(error))
            return None
        return last if isinstance(last, dict) and last.keys() >= STEP_FIELDS else None
