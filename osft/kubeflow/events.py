"""Why a training pod does not start: what Kubernetes says of it, in words, with what to do.

Events are the only place where a scheduler, a kubelet or Kueue say what they wait for. Their texts are for people and
not fixed; the patterns below are those of Kubernetes 1.28 to 1.34 and Kueue 0.9 to 0.14. What matches none of them is
shown as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Pattern in an event's message, what it means, what to do. The first that matches counts.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"Insufficient nvidia\.com/gpu",
        "no node has as many free GPUs",
        "Wait for other jobs to end, lower train_gpus_per_node, or add GPU nodes",
    ),
    (
        r"Insufficient (cpu|memory|ephemeral-storage)",
        "no node has as much free CPU or memory",
        "Wait, or lower train_cpu or train_memory",
    ),
    (
        r"exceeded quota",
        "the namespace's quota is used up",
        "Lower train_num_nodes, train_gpus_per_node, train_cpu or train_memory, or have the ResourceQuota raised",
    ),
    (
        r'persistentvolumeclaim "\S+" not found|unbound immediate PersistentVolumeClaims|unbound PersistentVolumeClaim',
        "the workspace's claim is missing or not bound to a volume",
        "Apply images/manifests/workspace-pvc.yaml with a storage class for ReadWriteMany, or set workspace_pvc",
    ),
    (
        r"Multi-Attach error|already (exclusively )?attached to",
        "the workspace's volume can be mounted on one machine only",
        "Use a claim with access mode ReadWriteMany",
    ),
    (r"MountVolume|Unable to attach or mount|FailedAttachVolume", "a volume cannot be mounted", "Look at the claim"),
    (
        r"untolerated taint",
        "the nodes that have room are tainted",
        "Set train_tolerations to the taint in the message",
    ),
    (
        r"didn't match Pod's node affinity/selector|didn't match node selector",
        "no node has the labels that were asked for",
        "Mend train_node_selector",
    ),
    (
        r"Failed to pull image|Back-off pulling image|ErrImagePull|ImagePullBackOff|InvalidImageName",
        "the image cannot be pulled",
        "Check train_image, that the registry can be reached, and the pull secret of the namespace",
    ),
    (
        r'secret "\S+" not found|configmap "\S+" not found|couldn\'t find key',
        "a secret or config map that the runtime names does not exist",
        "Create it in this namespace",
    ),
    (
        r"security context constraint|violates PodSecurity",
        "the cluster's security policy refuses the pods",
        "Use a training runtime that runs without root",
    ),
    (
        r"LocalQueue \S+ (doesn't exist|is inactive|is not active)|ClusterQueue \S+ is inactive|queue.*not found",
        "Kueue's queue cannot take the job",
        "Set train_queue to a LocalQueue of this namespace",
    ),
    (
        r"couldn't assign flavors|insufficient (unused )?quota|maximum capacity|Waiting for (the )?quota",
        "Kueue has no free quota for the job",
        "Wait for the queue's other jobs, lower train_num_nodes or train_gpus_per_node, or have the quota raised",
    ),
    (
        r"preempt",
        "the pod had to give way to one of a higher priority",
        "Nothing: the training goes on when it is back",
    ),
)
# A scheduler says what it found out about preempting other pods, whatever it was that is missing.
ABOUT_PREEMPTION = re.compile(r"\.? preemption: .*$", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What one event says about a pod or a job that waits."""

    about: str
    """Kind and name of the object, e.g. ``Pod osft-1-node-0-0-x7k2p``."""

    text: str
    """What Kubernetes says, what it means, what to do: one line."""


def explain(event: Mapping[str, Any]) -> Explanation | None:
    """Return what an event says that somebody who waits should know; ``None`` if it is only progress.

    Args:
        event: an Event of the core API.
    """
    message = ABOUT_PREEMPTION.sub("", " ".join((event.get("message") or "").split()))
    involved = event.get("involvedObject") or {}
    about = f"{involved.get('kind', 'object')} {involved.get('name', '')}".strip()
    said = f"{event.get('reason', '')}: {message}".strip(": ").rstrip(".")
    for pattern, meaning, mend in CAUSES:
        if re.search(pattern, said, re.IGNORECASE) and _may_explain(event, meaning):
            return Explanation(about=about, text=f"{meaning} ({said}). {mend}.")
    return Explanation(about=about, text=f"{said}.") if event.get("type") == "Warning" else None


def _may_explain(event: Mapping[str, Any], meaning: str) -> bool:
    """Return whether an event means what its words match: a plain one may merely mention them."""
    return event.get("type") == "Warning" or event.get("reason") in ("Pending", "BackOff", "Preempted", "FailedCreate")
