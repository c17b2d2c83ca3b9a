"""Events in words: texts as Kubernetes and Kueue write them."""

from typing import Any

import pytest

from osft.kubeflow.events import explain


def make_event(reason: str, message: str, *, kind: str = "Pod", severity: str = "Warning") -> dict[str, Any]:
    return {
        "reason": reason,
        "message": message,
        "type": severity,
        "involvedObject": {"kind": kind, "name": "osft-1-node-0-0-x7k2p"},
    }


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        (
            "FailedScheduling",
            "0/6 nodes are available: 2 Insufficient nvidia.com/gpu, 4 node(s) had untolerated taint {a: b}. "
            "preemption: 0/6 nodes are available: 6 No preemption victims found for incoming pod.",
            "no node has as many free GPUs (FailedScheduling: 0/6 nodes are available: 2 Insufficient nvidia.com/gpu, "
            "4 node(s) had untolerated taint {a: b}). Wait for other jobs to end, lower train_gpus_per_node, or add "
            "GPU nodes.",
        ),
        (
            "FailedScheduling",
            "0/6 nodes are available: 6 Insufficient memory.",
            "no node has as much free CPU or memory",
        ),
        (
            "FailedScheduling",
            "0/6 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: true}.",
            "the nodes that have room are tainted",
        ),
        (
            "FailedScheduling",
            "0/6 nodes are available: 6 node(s) didn't match Pod's node affinity/selector.",
            "no node has the labels that were asked for",
        ),
        (
            "FailedScheduling",
            '0/6 nodes are available: persistentvolumeclaim "osft-workspace" not found.',
            "the workspace's claim is missing or not bound to a volume",
        ),
        (
            "FailedScheduling",
            "0/6 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            "the workspace's claim is missing or not bound to a volume",
        ),
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) a',
            "the workspace's volume can be mounted on one machine only",
        ),
        ("FailedMount", 'MountVolume.SetUp failed for volume "pvc-1": timed out', "a volume cannot be mounted"),
        (
            "Failed",
            'Failed to pull image "quay.io/a/b:1": rpc error: code = NotFound desc = manifest unknown',
            "the image cannot be pulled",
        ),
        ("Failed", 'Error: secret "tokens" not found', "a secret or config map that the runtime names does not exist"),
        (
            "FailedCreate",
            'Error creating: pods "osft-1-node-0-0-" is forbidden: exceeded quota: gpus, requested: '
            "requests.nvidia.com/gpu=4, used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8",
            "the namespace's quota is used up",
        ),
        (
            "FailedCreate",
            'Error creating: pods "a" is forbidden: unable to validate against any security context constraint: [x]',
            "the cluster's security policy refuses the pods",
        ),
        ("Inactive", "LocalQueue gpus doesn't exist", "Kueue's queue cannot take the job"),
    ],
)
def test_an_obstacle_is_named_with_what_to_do(reason: str, message: str, words: str) -> None:
    explanation = explain(make_event(reason, message))

    assert explanation is not None
    assert explanation.about == "Pod osft-1-node-0-0-x7k2p"
    assert explanation.text.startswith(words)
    assert "\n" not in explanation.text
    assert reason in explanation.text


def test_kueue_says_in_a_plain_event_that_it_has_no_quota() -> None:
    message = (
        "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu in flavor a, 2 more"
    )

    explanation = explain(make_event("Pending", message, kind="Workload", severity="Normal"))

    assert explanation is not None
    assert explanation.text.startswith("Kueue has no free quota for the job (Pending: couldn't assign flavors")


def test_a_back_off_is_a_plain_event_and_an_obstacle() -> None:
    explanation = explain(make_event("BackOff", 'Back-off pulling image "a/b:1"', severity="Normal"))

    assert explanation is not None
    assert explanation.text.startswith("the image cannot be pulled")


def test_a_warning_that_nobody_knows_is_shown_as_it_is() -> None:
    explanation = explain(make_event("Strange", "something\n  odd."))

    assert explanation is not None
    assert explanation.text == "Strange: something odd."


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Pulling", 'Pulling image "a/b:1"'),
        ("Scheduled", "Successfully assigned a/b to c"),
        ("QuotaReserved", "Quota reserved in ClusterQueue gpus, wait time since queued was 12s"),
    ],
)
def test_progress_is_no_obstacle(reason: str, message: str) -> None:
    assert explain(make_event(reason, message, severity="Normal")) is None
