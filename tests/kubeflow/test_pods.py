"""Pods in words, and how their runs of a container ended."""

from typing import Any

import pytest

from osft.kubeflow.cluster import Cluster
from osft.kubeflow.pods import (
    NodeEnd,
    NodeEnds,
    NodeLog,
    all_nodes_run,
    comparable_time,
    describe,
    is_running,
    newest_of_first_node,
    node_of,
)
from tests.kubeflow.api_server.examples import shell_job
from tests.kubeflow.api_server.service import Service


def make_pod(state: dict[str, Any] | None = None, *, phase: str = "Pending", index: int = 0, **status: Any) -> Any:
    statuses = [] if state is None else [{"name": "node", "state": state, **status}]
    # A sidecar's state is not the node's.
    statuses.insert(0, {"name": "istio-proxy", "state": {"running": {}}})
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {
        "metadata": {"name": f"osft-1-node-0-{index}-x7k2p", "uid": "u", "labels": labels},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (make_pod(), "Pending"),
        (make_pod({"waiting": {"reason": "ContainerCreating"}}), "Pending (ContainerCreating)"),
        (make_pod({"waiting": {"reason": "ImagePullBackOff"}}), "Pending (ImagePullBackOff)"),
        (make_pod({"running": {}}, phase="Running"), "Running"),
        (make_pod({"running": {}}, phase="Running", restartCount=2), "Running (restarted 2 times)"),
        (make_pod({"terminated": {"exitCode": 0}}, phase="Succeeded"), "Succeeded"),
        (
            make_pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, phase="Failed"),
            "Failed (exit code 137, OOMKilled)",
        ),
    ],
)
def test_a_pods_state_is_a_few_words(pod: Any, words: str) -> None:
    assert describe(pod) == words


def test_a_pod_without_a_machine_and_one_that_is_deleted_say_so() -> None:
    unscheduled, deleted = make_pod(), make_pod({"running": {}}, phase="Running")
    unscheduled["status"]["conditions"] = [UNSCHEDULED]
    deleted["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"

    assert describe(unscheduled) == "Pending (Unschedulable)"
    assert describe(deleted) == "Running (being deleted)"


def test_a_pod_runs_once_its_own_container_does() -> None:
    assert not is_running(make_pod())
    assert not is_running(make_pod({"waiting": {"reason": "ContainerCreating"}}))
    assert is_running(make_pod({"running": {}}, phase="Running"))
    assert is_running(make_pod({"terminated": {"exitCode": 0}}, phase="Succeeded"))


def test_the_first_nodes_newest_pod_is_followed() -> None:
    pods = [make_pod(index=0), make_pod(index=1), make_pod({"running": {}}, index=0), make_pod(index=10)]

    assert newest_of_first_node(pods) is pods[2]
    assert newest_of_first_node(pods[1:2]) is None
    assert node_of(pods[3]) == 10


def test_nodes_run_when_each_has_a_pod_that_runs_and_is_to_stay() -> None:
    first, second, going = (make_pod({"running": {}}, phase="Running", index=index) for index in (0, 1, 1))
    going["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"

    assert all_nodes_run([first, second], 2)
    assert not all_nodes_run([first, first], 2)
    assert not all_nodes_run([first, going], 2)


def test_an_end_that_was_overcome_is_told_apart_from_one_that_counts(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    ends = NodeEnds(Cluster())
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "containerID": "a"}}
    failed = {"terminated": {"exitCode": 1, "containerID": "b"}}
    disrupted = make_pod(killed)
    disrupted["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]

    ends.note(disrupted)
    ends.overcome_all()
    ends.note(make_pod(failed, lastState=killed))

    assert [end.exit_code for end in ends.in_order] == [1]
    assert [end.exit_code for end in ends.overcome] == [137]
    assert not ends.disrupted


def test_a_pod_whose_machine_is_behind_shows_its_log_too(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    caplog.set_level("INFO", "osft")
    service.create(shell_job("echo words; exec sleep 60"))
    pod = service.running_pod()
    service.wait_for(lambda: pod.logs[0].lines)
    ahead, now = (pod.node.store.get("pods", "science", pod.name) for _ in range(2))
    ahead["metadata"]["uid"] = "of-the-pod-before"
    log = NodeLog(Cluster())

    for one in (ahead, now):
        log.show_new(one)

    assert caplog.messages.count("node 0: words") == 2


def test_times_of_the_kubelet_compare_as_texts_whatever_their_digits_and_zone() -> None:
    stamps = [
        "2026-11-22T12:00:00Z",
        "2026-11-22T12:00:00.000000001Z",
        "2026-11-22T14:00:00.1+02:00",
        "2026-11-22T12:00:00.123456Z",
        "2026-11-22T12:00:00.5Z",
        "2026-11-22T07:00:01-05:00",
    ]

    times = [comparable_time(stamp) for stamp in stamps]

    assert times == sorted(times)  # type: ignore[type-var]
    assert len({len(time or "") for time in times}) == 1


@pytest.mark.parametrize("stamp", ["", "12:00:00", "2026-11-22", "2026-11-22T12:00:00"])
def test_what_is_no_time_of_the_kubelet_is_told_apart(stamp: str) -> None:
    assert comparable_time(stamp) is None


@pytest.mark.parametrize(("exit_code", "was_told_to"), [(143, True), (137, False), (1, False)])
def test_a_node_that_was_told_to_end_is_told_apart_from_one_that_failed(exit_code: int, was_told_to: bool) -> None:
    end = NodeEnd(node=1, pod="p", exit_code=exit_code, reason="Error", finished_at="", last_lines=())

    assert end.was_told_to is was_told_to
    assert str(end) == f"node 1 (pod p) ended with exit code {exit_code}"
