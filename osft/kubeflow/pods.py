"""What the pods of a job say: their state in words, how they ended, and the first node's log.

A pod's container may be started again in its place (JobSet's default), and a pod that failed too often is removed:
how it ended is noted when it is seen, with the last lines of its log.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from osft.kubeflow.cluster import Cluster
from osft.kubeflow.versions import NODE
from osft.processes.preemption import PREEMPTED_EXIT_CODE

logger = logging.getLogger(__name__)

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
TAIL_LINES = 20
# How the fraction of a second is written out, so that times compare as texts.
NANOSECOND_DIGITS = 9
SECONDS_LENGTH = len("2006-01-02T15:04:05")
# Machines whose clock is not on UTC say so.
KUBELET_TIME = re.compile(r"(?P<seconds>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)")
OUT_OF_MEMORY = "OOMKilled"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEnd:
    """How one run of a node's container ended, other than well."""

    node: int
    pod: str
    exit_code: int
    reason: str
    """Kubernetes' word, e.g. ``Error`` or ``OOMKilled``."""

    finished_at: str
    last_lines: tuple[str, ...]
    """What its log ended with."""

    @property
    def was_told_to(self) -> bool:
        """Whether it ended because it was told to, after saving its state."""
        return self.exit_code == PREEMPTED_EXIT_CODE

    def __str__(self) -> str:
        why = f", {self.reason}" if self.reason not in ("", "Error") else ""
        return f"node {self.node} (pod {self.pod}) ended with exit code {self.exit_code}{why}"


def node_of(pod: Mapping[str, Any]) -> int:
    """Return the number of the node that a pod is."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return int(labels.get(INDEX_LABEL) or annotations.get(INDEX_LABEL) or 0)


def describe(pod: Mapping[str, Any]) -> str:
    """Return a pod's state in a few words, e.g. ``Pending (ContainerCreating)``."""
    status = pod.get("status") or {}
    phase = status.get("phase", "Unknown")
    if pod["metadata"].get("deletionTimestamp"):
        return f"{phase} (being deleted)"
    container = _container_status(pod)
    state = container.get("state") or {}
    if waiting := state.get("waiting"):
        return f"{phase} ({waiting.get('reason', 'waiting')})"
    if (ended := state.get("terminated")) and ended.get("exitCode"):
        return f"{phase} (exit code {ended['exitCode']}, {ended.get('reason', 'Error')})"
    unscheduled = [
        one for one in status.get("conditions") or [] if one["type"] == "PodScheduled" and one["status"] == "False"
    ]
    if unscheduled:
        return f"{phase} ({unscheduled[0].get('reason', 'not scheduled')})"
    restarts = container.get("restartCount") or 0
    return f"{phase} (restarted {restarts} times)" if restarts else phase


def is_running(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod's container runs, or has ended well."""
    return "running" in (_container_status(pod).get("state") or {}) or pod["status"].get("phase") == "Succeeded"


def newest_of_first_node(pods: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the newest pod of node 0 among ``pods``, the oldest first; ``None`` if there is none."""
    of_first_node = [pod for pod in pods if node_of(pod) == 0]
    return of_first_node[-1] if of_first_node else None


def all_nodes_run(pods: Iterable[Mapping[str, Any]], nodes: int) -> bool:
    """Return whether each of the job's nodes has a pod that runs and is to stay."""
    running = {
        node_of(pod)
        for pod in pods
        if is_running(pod) and not pod["metadata"].get("deletionTimestamp") and not _is_disrupted(pod)
    }
    return len(running) == nodes


class NodeEnds:
    """Collects how nodes ended, once each."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ends: dict[tuple[str, str], NodeEnd] = {}
        self._overcome: dict[tuple[str, str], NodeEnd] = {}
        self._disrupted: set[str] = set()
        self._disruptions_overcome: set[str] = set()

    @property
    def disrupted(self) -> bool:
        """Whether the cluster took a pod away. One that it deletes is gone before it is seen to have ended."""
        return not self._disrupted <= self._disruptions_overcome

    @property
    def in_order(self) -> list[NodeEnd]:
        """The ends since all nodes last ran, the earliest first."""
        return _sorted(self._ends.values())

    @property
    def overcome(self) -> list[NodeEnd]:
        """The ends before that, the earliest first."""
        return _sorted(self._overcome.values())

    def overcome_all(self) -> None:
        """Say that all nodes run: what has ended before is no reason for what comes."""
        self._overcome |= self._ends
        self._ends = {}
        self._disruptions_overcome |= self._disrupted

    def note(self, pod: Mapping[str, Any]) -> None:
        """Take up how this pod's container ended, now or before it was started again."""
        if _is_disrupted(pod):
            self._disrupted.add(pod["metadata"]["uid"])
        container = _container_status(pod)
        for field, previous in (("lastState", True), ("state", False)):
            ended = (container.get(field) or {}).get("terminated")
            if not ended or not ended.get("exitCode"):
                continue
            key = (pod["metadata"]["uid"], ended.get("containerID") or ended.get("finishedAt", ""))
            if key not in self._ends and key not in self._overcome:
                self._ends[key] = self._end_of(pod, ended, previous=previous)
                logger.warning("%s", self._ends[key])

    def _end_of(self, pod: Mapping[str, Any], ended: Mapping[str, Any], *, previous: bool) -> NodeEnd:
        query = [("tailLines", str(TAIL_LINES)), *([("previous", "true")] if previous else [])]
        text = self._cluster.read_log(pod["metadata"]["name"], NODE, query) or ""
        return NodeEnd(
            node=node_of(pod),
            pod=pod["metadata"]["name"],
            exit_code=ended["exitCode"],
            reason=ended.get("reason", ""),
            finished_at=ended.get("finishedAt") or "",
            last_lines=tuple(map(_as_seen, text.strip("\n").split("\n"))) if text else (),
        )


class NodeLog:
    """Shows the lines of a node's log, each once, however often the requests for them break off.

    Each look asks for what came since the last line that was seen. The API server takes that time in whole seconds, so
    some lines come again; they are known by their own times, which have nanoseconds.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._uid = ""
        self._last_time = ""
        self._shown_of_last_time = 0
        self._seen_restarts = 0

    def show_new(self, pod: Mapping[str, Any]) -> bool:
        """Log what is new in the log of ``pod``; return whether its log could be read."""
        if pod["metadata"]["uid"] != self._uid:
            # Another pod may run on another machine, whose clock is behind.
            self._uid, self._last_time, self._shown_of_last_time, self._seen_restarts = pod["metadata"]["uid"], "", 0, 0
        container = _container_status(pod)
        restarts = container.get("restartCount") or 0
        if restarts > self._seen_restarts:
            # The last words of the container that has ended since.
            self._show(self._read(pod, previous=True) or "", has_ended=True)
        self._seen_restarts = restarts
        text = self._read(pod, previous=False)
        self._show(text or "", has_ended="terminated" in (container.get("state") or {}))
        return text is not None

    def _read(self, pod: Mapping[str, Any], *, previous: bool) -> str | None:
        query = [("timestamps", "true")]
        if self._last_time:
            query.append(("sinceTime", f"{self._last_time[:SECONDS_LENGTH]}Z"))
        if previous:
            query.append(("previous", "true"))
        return self._cluster.read_log(pod["metadata"]["name"], NODE, query)

    def _show(self, text: str, *, has_ended: bool) -> None:
        """Show the lines of ``text`` that are new; a last one without its end waits, unless no more will come."""
        *lines, last = text.split("\n")
        to_skip = self._shown_of_last_time
        for line in [*lines, last] if has_ended and last else lines:
            stamp, _, words = line.partition(" ")
            time = comparable_time(stamp)
            if time is None:
                logger.info("node 0: %s", _as_seen(line))
                continue
            if time < self._last_time:
                continue
            if time == self._last_time and to_skip:
                to_skip -= 1
                continue
            self._shown_of_last_time = self._shown_of_last_time + 1 if time == self._last_time else 1
            self._last_time = time
            logger.info("node 0: %s", _as_seen(words))


def comparable_time(stamp: str) -> str | None:
    """Return a time of the kubelet in UTC with nine digits of a second, so that it compares as a text.

    ``None`` if it is none.
    """
    match = KUBELET_TIME.fullmatch(stamp)
    if match is None:
        return None
    seconds = datetime.fromisoformat(match["seconds"] + match["zone"]).astimezone(UTC)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{(match['fraction'] or '').ljust(NANOSECOND_DIGITS, '0')}"


def _sorted(ends: Iterable[NodeEnd]) -> list[NodeEnd]:
    # Of one second, a node that was told to end may have been told so because of the other one.
    return sorted(ends, key=lambda end: (end.finished_at, end.was_told_to))


def _is_disrupted(pod: Mapping[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(one["type"] == "DisruptionTarget" and one["status"] == "True" for one in conditions)


def _as_seen(line: str) -> str:
    """Return what a terminal shows of a line in the end: a progress bar writes over itself."""
    return line.rstrip("\r").rpartition("\r")[2]


def _container_status(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((status for status in statuses if status["name"] == NODE), {})
