"""The API server of these tests, through the official client: what the tests of training on the cluster rely on."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kubernetes import client, watch

from tests.kubeflow.api_server.cluster import NAMESPACE
from tests.kubeflow.api_server.examples import OVERRIDES, overrides, shell_job
from tests.kubeflow.api_server.faults import Obstacle
from tests.kubeflow.api_server.service import TRAINER, Service

NAME = "osft-example"
LABELS = f"jobset.sigs.k8s.io/jobset-name={NAME}"
JOB = {**TRAINER, "name": NAME}


@pytest.fixture
def core(service: Service) -> client.CoreV1Api:
    return client.CoreV1Api(service.api_client())


@pytest.fixture
def custom(service: Service) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(service.api_client())


@pytest.mark.parametrize("version", OVERRIDES)
def test_each_version_keeps_its_own_overrides_and_silently_drops_the_others(
    make_service: Callable[..., Service], workspace_folder: Path, version: str
) -> None:
    service = make_service(version)
    job = shell_job("true")
    job["spec"] |= {name: overrides(workspace_folder, of) for of, name in OVERRIDES.items() if of != "2.3"}
    job["spec"]["trainer"]["imagePullPolicy"] = "Always"

    created = service.create(job, dry_run="All")

    assert set(created["spec"]) == {"runtimeRef", "trainer", "managedBy", "suspend", OVERRIDES[version]}
    assert created["spec"][OVERRIDES[version]] == overrides(workspace_folder, version)
    assert created["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"
    assert "imagePullPolicy" not in created["spec"]["trainer"]
    assert service.cluster.pods == []


def test_a_strict_client_is_told_of_what_would_be_dropped(service: Service, workspace_folder: Path) -> None:
    job = shell_job("true", workspace=workspace_folder, version="2.2")

    with pytest.raises(client.ApiException, match="strict decoding error: unknown field .*spec.runtimePatches"):
        service.create(job, field_validation="Strict")

    assert service.cluster.pods == []


def test_the_crd_tells_which_fields_there_are(service: Service) -> None:
    api = client.CustomObjectsApi(service.api_client())
    crd = api.get_cluster_custom_object(
        "apiextensions.k8s.io", "v1", "customresourcedefinitions", "trainjobs.trainer.kubeflow.org"
    )

    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert "podTemplateOverrides" in schema["properties"]["spec"]["properties"]
    assert "runtimePatches" not in schema["properties"]["spec"]["properties"]


def test_a_job_runs_its_command_on_every_node_with_the_environment_of_torchrun(
    service: Service, core: client.CoreV1Api, custom: client.CustomObjectsApi, workspace_folder: Path
) -> None:
    (workspace_folder / "greeting").write_text("hello from the volume\n")
    command = f"cat {workspace_folder}/greeting; echo node $PET_NODE_RANK of $PET_NNODES, $PET_NPROC_PER_NODE process"

    service.create(shell_job(command, nodes=2, workspace=workspace_folder))
    service.wait_for(lambda: service.condition(NAME))

    pods = core.list_namespaced_pod(NAMESPACE, label_selector=LABELS).items
    logs = [core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, container="node") for pod in pods]
    assert logs == [f"hello from the volume\nnode {rank} of 2, 1 process\n" for rank in range(2)]
    assert [pod.status.phase for pod in pods] == ["Succeeded", "Succeeded"]
    status = custom.get_namespaced_custom_object(**JOB)["status"]
    assert status["conditions"][-1]["type"] == "Complete"
    assert status["jobsStatus"][0]["succeeded"] == 1


def test_a_pod_without_the_volume_does_not_see_the_workspace(
    service: Service, core: client.CoreV1Api, workspace_folder: Path
) -> None:
    (workspace_folder / "greeting").write_text("hello")
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")

    service.create(shell_job(f"cat {workspace_folder}/greeting"))
    condition = service.wait_for(lambda: service.condition(NAME))

    assert condition["reason"] == "FailedJobs"
    assert "No such file" in core.read_namespaced_pod_log(service.pod().name, NAMESPACE)


def test_a_watch_tells_the_phases_of_a_pod_in_order(service: Service, core: client.CoreV1Api) -> None:
    version = core.list_namespaced_pod(NAMESPACE).metadata.resource_version
    service.create(shell_job("true"))
    service.wait_for(lambda: service.condition(NAME))

    stream = watch.Watch().stream(
        core.list_namespaced_pod, NAMESPACE, label_selector=LABELS, resource_version=version, timeout_seconds=1
    )
    seen = [(event["type"], event["object"].status.phase) for event in stream]

    assert [pair for index, pair in enumerate(seen) if pair not in seen[:index]] == [
        ("ADDED", "Pending"),
        ("MODIFIED", "Pending"),
        ("MODIFIED", "Running"),
        ("MODIFIED", "Succeeded"),
    ]


def test_a_watch_from_before_a_restart_is_told_that_it_is_too_late(service: Service, core: client.CoreV1Api) -> None:
    version = core.list_namespaced_pod(NAMESPACE).metadata.resource_version
    service.restart()

    with pytest.raises(client.ApiException, match="too old resource version") as error:
        list(watch.Watch().stream(core.list_namespaced_pod, NAMESPACE, resource_version=version, timeout_seconds=1))

    assert error.value.status == 410


def test_a_log_can_be_read_from_a_time_on_with_times_and_followed(service: Service, core: client.CoreV1Api) -> None:
    service.create(shell_job("echo one; echo two; sleep 1; echo three"))
    name = service.running_pod().name

    followed = core.read_namespaced_pod_log(name, NAMESPACE, follow=True, timestamps=True, _preload_content=False)
    lines = [line.decode().split(" ") for line in followed.read().splitlines()]

    assert [words[1] for words in lines] == ["one", "two", "three"]
    later = (datetime.fromisoformat(lines[-1][0][:19]) + timedelta(seconds=0.9)).replace(tzinfo=UTC)
    since = core.api_client.call_api(
        f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/log", "GET", auth_settings=["BearerToken"], response_type="str",
        query_params=[("sinceTime", later.isoformat())], _return_http_data_only=True,
    )  # fmt: skip
    assert since == "three\n"
    assert core.read_namespaced_pod_log(name, NAMESPACE, tail_lines=1) == "three\n"


def test_deleting_a_job_stops_its_processes(
    service: Service, core: client.CoreV1Api, custom: client.CustomObjectsApi, workspace_folder: Path
) -> None:
    told = workspace_folder / "told"
    wait = f"trap 'touch {told}; exit 143' TERM; touch {told}.ready; while true; do sleep 0.05; done"
    service.create(shell_job(wait, workspace=workspace_folder))
    service.wait_for((workspace_folder / "told.ready").exists)

    custom.delete_namespaced_custom_object(**JOB, propagation_policy="Foreground")
    service.wait_for(lambda: not service.cluster.store.has("trainjobs", NAMESPACE, NAME))

    assert told.exists()
    assert core.list_namespaced_pod(NAMESPACE).items == []
    with pytest.raises(client.ApiException, match="not found"):
        custom.get_namespaced_custom_object(**JOB)


def test_a_container_that_fails_starts_again_until_the_limit_and_then_its_pod_is_gone(
    service: Service, core: client.CoreV1Api
) -> None:
    service.cluster.set_runtime(backoff_limit=1, restart_policy="OnFailure")

    service.create(shell_job("echo no luck; exit 3"))
    condition = service.wait_for(lambda: service.condition(NAME))

    assert condition["type"] == "Failed"
    assert len(service.pod().logs) == 2
    assert core.list_namespaced_pod(NAMESPACE).items == []
    assert {"BackOff", "BackoffLimitExceeded"} <= set(service.reasons())


def test_a_pod_that_is_preempted_ends_with_143_and_is_replaced(service: Service, workspace_folder: Path) -> None:
    done = workspace_folder / "done"
    wait = f"until [ -e {done} ]; do sleep 0.05; done"
    service.create(shell_job(wait, workspace=workspace_folder))
    first = service.running_pod()

    first.preempt()
    second = service.wait_for(lambda: pod if (pod := service.pod()) is not first else None)
    done.touch()
    service.wait_for(lambda: service.condition(NAME))

    ended = [change.object["status"] for change in service.cluster.store.history
             if change.object["metadata"]["name"] == first.name and change.resource == "pods"]  # fmt: skip
    assert ended[-1]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143
    assert ended[-1]["conditions"][-1]["type"] == "DisruptionTarget"
    assert second.status["phase"] == "Succeeded"


def test_a_container_out_of_memory_ends_with_137(service: Service) -> None:
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")
    service.create(shell_job("sleep 60"))

    service.running_pod().exhaust_memory()
    service.wait_for(lambda: service.condition(NAME))

    ended = service.pod().status["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


@pytest.mark.parametrize(
    ("obstacle", "reason", "message"),
    [
        (Obstacle.NO_GPU, "FailedScheduling", "3 Insufficient nvidia.com/gpu"),
        (Obstacle.UNBOUND_CLAIM, "FailedScheduling", "unbound immediate PersistentVolumeClaims"),
        (Obstacle.IMAGE, "Failed", "manifest unknown"),
        (Obstacle.QUOTA, "FailedCreate", "exceeded quota"),
        (Obstacle.KUEUE, "Pending", "insufficient unused quota"),
    ],
)
def test_what_keeps_a_job_from_starting_is_an_event_and_ends_with_its_cause(
    service: Service, core: client.CoreV1Api, obstacle: Obstacle, reason: str, message: str
) -> None:
    service.cluster.faults.obstacle = obstacle

    service.create(shell_job("true"))
    service.wait_for(lambda: reason in service.reasons())
    (event,) = core.list_namespaced_event(NAMESPACE, field_selector=f"reason={reason}").items
    service.cluster.faults.obstacle = None

    assert message in event.message
    assert service.wait_for(lambda: service.condition(NAME))["type"] == "Complete"


def test_what_breaks_the_schema_is_refused_with_its_causes(service: Service) -> None:
    job = shell_job("true")
    job["spec"]["trainer"] |= {"numNodes": "two", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}

    with pytest.raises(client.ApiException, match="must be of type integer") as error:
        service.create(job)

    assert error.value.status == 422
    assert "Duplicate value" in error.value.body


@pytest.mark.parametrize(
    ("trainer", "runtime", "message"),
    [
        ({"env": [{"name": "PET_NNODES", "value": "2"}]}, "torch-distributed", "must not have reserved envs"),
        ({}, "torch", "must be created before"),
    ],
)
def test_what_the_webhook_refuses_is_forbidden(service: Service, trainer: dict, runtime: str, message: str) -> None:
    job = shell_job("true")
    job["spec"]["trainer"] |= trainer
    job["spec"]["runtimeRef"]["name"] = runtime

    with pytest.raises(client.ApiException, match=message) as error:
        service.create(job)

    assert error.value.status == 403


def test_a_name_that_is_taken_is_a_conflict(service: Service) -> None:
    service.create(shell_job("true"))

    with pytest.raises(client.ApiException, match="AlreadyExists") as error:
        service.create(shell_job("true"))

    assert error.value.status == 409


def test_the_step_may_do_what_the_roles_grant_and_nothing_else(service: Service) -> None:
    step = client.CoreV1Api(service.api_client(as_step=True))

    with pytest.raises(client.ApiException, match="pipeline-runner-dspa.* cannot delete resource"):
        step.delete_namespaced_pod("any", NAMESPACE)
    assert step.list_namespaced_pod(NAMESPACE).items == []


def test_a_path_that_does_not_exist_is_not_found(core: client.CoreV1Api) -> None:
    with pytest.raises(client.ApiException, match="could not find the requested resource"):
        core.list_namespaced_secret(NAMESPACE)


def test_a_token_that_expired_is_refused_and_the_next_one_is_in_the_file(service: Service) -> None:
    step = client.CoreV1Api(service.api_client(as_step=True))
    service.cluster.rotate_token()

    with pytest.raises(client.ApiException, match="Unauthorized"):
        step.list_namespaced_pod(NAMESPACE)
    assert client.CoreV1Api(service.api_client(as_step=True)).list_namespaced_pod(NAMESPACE).items == []


def test_a_client_that_does_not_know_the_authority_does_not_connect(service: Service, tmp_path: Path) -> None:
    api_client = service.api_client()
    api_client.configuration.ssl_ca_cert = None
    stranger = client.CoreV1Api(client.ApiClient(api_client.configuration))
    stranger.api_client.rest_client.pool_manager.connection_pool_kw["retries"] = False

    with pytest.raises(client.ApiException, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.list_namespaced_pod(NAMESPACE)


def test_faults_happen_as_often_as_asked(service: Service, core: client.CoreV1Api) -> None:
    service.cluster.faults.answer(500, times=1, path="/pods")

    with pytest.raises(client.ApiException, match="InternalError") as error:
        core.list_namespaced_pod(NAMESPACE)

    assert error.value.status == 500
    assert core.list_namespaced_pod(NAMESPACE).items == []
    assert service.cluster.faults.remaining() == []


def test_a_client_waits_as_long_as_the_server_asks(service: Service, core: client.CoreV1Api) -> None:
    service.cluster.faults.answer(429, times=1, path="/pods", retry_after=1)

    pods = core.list_namespaced_pod(NAMESPACE).items

    assert pods == []
    assert service.cluster.faults.happened == ["429 list"]
