"""Requests to the API server: the way there, and what is done about an answer that is none."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tenacity import wait_fixed

from osft.errors import ClusterError, ConfigError
from osft.kubeflow.cluster import Cluster
from tests.kubeflow.api_server.examples import shell_job
from tests.kubeflow.api_server.service import Service


@pytest.fixture
def cluster(service: Service, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    monkeypatch.setattr("osft.kubeflow.connection.WAIT_BETWEEN_TRIES", wait_fixed(0.01))
    return Cluster()


def test_the_namespace_is_that_of_the_kubeconfig(cluster: Cluster) -> None:
    assert cluster.namespace == "science"


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(
    service: Service, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "osft")
    service.cluster.faults.answer(429, times=1, retry_after=1)

    found = cluster.find_trainjob("osft-1")

    assert found is None
    assert [message.endswith("trying again in 1 s") for message in caplog.messages] == [True]


@pytest.mark.parametrize("status", [500, 503, 504])
def test_a_server_that_fails_is_asked_again(service: Service, cluster: Cluster, status: int) -> None:
    service.cluster.faults.answer(status, times=2)

    assert cluster.find_trainjob("osft-1") is None


def test_a_connection_that_breaks_off_in_the_handshake_is_tried_again(service: Service, cluster: Cluster) -> None:
    service.cluster.faults.handshakes += [1 << 14, 1 << 14]

    assert cluster.find_trainjob("osft-1") is None
    assert service.cluster.faults.happened == ["handshake cut", "handshake cut"]


def test_a_token_that_has_expired_is_read_anew(service: Service, cluster: Cluster) -> None:
    service.cluster.rotate_token()

    assert cluster.find_trainjob("osft-1") is None


def test_a_token_that_is_late_is_waited_for(service: Service, cluster: Cluster) -> None:
    service.cluster.faults.answer(401, times=5)

    assert cluster.find_trainjob("osft-1") is None


def test_a_token_that_stays_wrong_is_an_error(
    service: Service, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osft.kubeflow.connection.UNAUTHORIZED_SECONDS", 0.5)
    service.cluster.rotate_token()
    (service.cluster.account / "token").write_text("wrong")

    with pytest.raises(ClusterError, match="401 Unauthorized. Log in again."):
        cluster.find_trainjob("osft-1")


def test_a_job_with_a_field_that_the_server_does_not_know_is_not_created(
    service: Service, cluster: Cluster, workspace_folder: Path
) -> None:
    job = shell_job("true", workspace=workspace_folder, version="2.3")

    with pytest.raises(ClusterError, match="strict decoding error.*runtimePatches"):
        cluster.create_trainjob(job)

    assert not service.cluster.played


def test_what_would_not_be_created_is_found_out_without_creating_it(
    service: Service, cluster: Cluster, workspace_folder: Path
) -> None:
    job = shell_job("true", workspace=workspace_folder, version="2.3")

    with pytest.raises(ClusterError, match="strict decoding error.*runtimePatches"):
        cluster.check_trainjob(job)

    assert not service.cluster.played


def test_of_two_jobs_of_one_name_the_second_is_not_created(cluster: Cluster) -> None:
    first = cluster.create_trainjob(shell_job("true"))

    second = cluster.create_trainjob(shell_job("true"))

    cluster.check_trainjob(shell_job("true"))
    assert first is not None
    assert second is None


def test_a_conflict_that_is_not_about_the_name_is_an_error(service: Service, cluster: Cluster) -> None:
    service.cluster.faults.answer(409, verb="create")

    with pytest.raises(ClusterError, match="409 fault: Conflict"):
        cluster.create_trainjob(shell_job("true"))


def test_deleting_what_is_not_there_is_no_error(cluster: Cluster) -> None:
    cluster.delete_trainjob("osft-1", "a-uid")

    assert cluster.find_trainjob("osft-1") is None


def test_another_job_of_the_same_name_is_not_deleted(cluster: Cluster) -> None:
    cluster.create_trainjob(shell_job("true"))

    cluster.delete_trainjob("osft-example", "uid-of-one-that-is-gone")

    assert cluster.find_trainjob("osft-example") is not None


def forget_history(service: Service) -> None:
    service.cluster.store.forget_history()


def fail_watch(service: Service) -> None:
    service.cluster.faults.answer(500, verb="watch")


@pytest.mark.parametrize("refuse", [forget_history, fail_watch])
def test_a_watch_that_is_refused_is_waited_out(
    service: Service, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Service], None]
) -> None:
    monkeypatch.setattr("osft.kubeflow.cluster.MIN_WAIT_SECONDS", 0.0)
    cluster.create_trainjob(shell_job("true"))
    job = service.wait_for(lambda: service.condition("osft-example") and cluster.find_trainjob("osft-example"))
    refuse(service)

    start = time.monotonic()
    cluster.wait_for_change(job, 1)

    assert time.monotonic() - start >= 1.0


def test_a_right_that_was_missing_is_asked_for_again(
    service: Service, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osft.kubeflow.cluster.REFUSED_SECONDS", 0.0)
    service.cluster.faults.answer(403, verb="list", path="pods")
    cluster.create_trainjob(shell_job("exec sleep 60"))
    service.running_pod()

    refused, answered = cluster.list_node_pods("osft-example"), cluster.list_node_pods("osft-example")

    assert refused == []
    assert len(answered) == 1


def test_a_missing_right_to_look_is_warned_of_once(
    service: Service, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    service.cluster.faults.without_right.add("pods")

    pods = cluster.list_node_pods("osft-1") + cluster.list_node_pods("osft-1")

    assert pods == []
    assert [message for message in caplog.messages if "may not list pods in namespace science" in message] == [
        "this step may not list pods in namespace science. Apply images/manifests for the service account of the "
        "pipeline's steps."
    ]


def change_kubeconfig(service: Service, change: Callable[[dict[str, str]], object]) -> Path:
    path = service.kubeconfig
    config = yaml.safe_load(path.read_text())
    change(config["clusters"][0]["cluster"])
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_server_that_would_not_be_verified_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    path = change_kubeconfig(service, lambda cluster: cluster.update({"insecure-skip-tls-verify": True}))
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(ConfigError, match="insecure-skip-tls-verify is set. Give certificate-authority"):
        Cluster()


def test_a_server_with_another_authority_is_not_spoken_to(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    path = change_kubeconfig(service, lambda cluster: cluster.pop("certificate-authority"))
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(ClusterError, match="certificate verify failed.* Give the authority that signed"):
        Cluster().find_trainjob("osft-1")


def test_no_way_to_a_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))

    with pytest.raises(
        ConfigError, match="no way to the cluster: .*Run this as a step of a pipeline, or set KUBECONFIG"
    ):
        Cluster()
