"""What goes wrong on a cluster, and what comes of a training there: it goes on, or it ends with words that help.

The pods run shell scripts in the place of a training, which takes seconds to start.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from osft.config import TrainingConfig
from osft.errors import ClusterError, ConfigError, DataError, PreemptedError, TrainingError
from osft.kubeflow.run import train_on_cluster
from osft.kubeflow.trainjob import TrainJobSettings, name_of_run
from osft.workspace import Workspace
from tests.kubeflow.api_server.containers import SHELL_IMAGE
from tests.kubeflow.api_server.faults import Obstacle
from tests.kubeflow.api_server.service import Service

pytestmark = pytest.mark.slow
RUN = "run-1"
NAME = name_of_run(RUN)
# Ten lines over a second and a half, with two of the same text.
TALK = "for i in 1 2 3 4 5 5 6 7 8 9; do echo line $i; sleep 0.15; done"
TALKED = [f"node 0: line {number}" for number in (1, 2, 3, 4, 5, 5, 6, 7, 8, 9)]
HANG = "echo hanging; exec sleep 60"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the job every second, not every five."""
    monkeypatch.setattr("osft.kubeflow.follow.SECONDS_BETWEEN_LOOKS", 1)
    monkeypatch.setattr("osft.kubeflow.lifecycle.SECONDS_BETWEEN_LOOKS", 0.2)


@pytest.fixture
def workspace(service: Service, workspace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    return Workspace(workspace_folder)


@pytest.fixture
def in_background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def train(workspace: Workspace, script: str, **settings: Any) -> None:
    """Train on the cluster, with a script in the place of the training."""
    chosen = {"nodes": 1, "gpus_per_node": 0, **settings}
    train_on_cluster(
        config(workspace),
        TrainJobSettings(runtime="torch-distributed", image=SHELL_IMAGE, env={"SCRIPT": script}, **chosen),
        run_id=RUN,
        workspace=workspace,
    )


def config(workspace: Workspace) -> TrainingConfig:
    return TrainingConfig(
        model_path=str(workspace.root / "model"),
        data_path=str(workspace.root / "train.parquet"),
        unfreeze_rank_ratio=0.5,
        effective_batch_size=2,
        max_tokens_per_gpu=64,
        max_seq_len=64,
        learning_rate=1e-3,
        ckpt_output_dir=str(workspace.root / "training"),
    )


def lines_of_node(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("node 0: ")]


def drop_watches(service: Service) -> None:
    service.cluster.faults.watch_lines += [0, 0]


def fail(service: Service) -> None:
    service.cluster.faults.answer(500, times=2)
    service.cluster.faults.answer(503, times=1)


def be_busy(service: Service) -> None:
    service.cluster.faults.answer(429, times=2, retry_after=1)


def cut_logs(service: Service) -> None:
    # The bytes of one line with its time, and some of the next.
    service.cluster.faults.log_bytes += [50, 3]


def expire_token(service: Service) -> None:
    service.cluster.rotate_token()


def restart(service: Service) -> None:
    service.restart(down_seconds=1.0)


def be_slow(service: Service) -> None:
    service.cluster.faults.delay_seconds = 0.1


@pytest.mark.parametrize("fault", [drop_watches, fail, be_busy, cut_logs, expire_token, restart, be_slow])
def test_the_job_is_followed_through_a_fault_of_the_api_server(
    service: Service,
    workspace: Workspace,
    in_background: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Service], None],
) -> None:
    caplog.set_level(logging.INFO, "osft")

    training = in_background.submit(train, workspace, TALK)
    service.running_pod()
    fault(service)
    training.result(timeout=60)

    assert lines_of_node(caplog) == TALKED
    assert service.cluster.faults.remaining() == []
    assert len(service.cluster.played) == 1


OBSTACLES = {
    Obstacle.NO_GPU: "no node has as many free GPUs .*3 Insufficient nvidia.com/gpu",
    Obstacle.UNBOUND_CLAIM: "claim is missing or not bound .*unbound immediate PersistentVolumeClaims",
    Obstacle.IMAGE: "the image cannot be pulled .*manifest unknown",
    Obstacle.QUOTA: "the namespace's quota is used up .*exceeded quota: gpus",
    Obstacle.KUEUE: "Kueue has no free quota for the job .*insufficient unused quota",
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_the_log_says_why_a_job_does_not_start_and_it_is_waited_for(
    service: Service,
    workspace: Workspace,
    in_background: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    obstacle: Obstacle,
) -> None:
    caplog.set_level(logging.INFO, "osft")
    service.cluster.faults.obstacle = obstacle

    training = in_background.submit(
        train, workspace, "echo started", queue="gpus" if obstacle is Obstacle.KUEUE else ""
    )
    said = service.wait_for(lambda: message_with(caplog, OBSTACLES[obstacle]) or training.done())
    service.cluster.faults.obstacle = None
    training.result(timeout=60)

    assert said is not True
    assert lines_of_node(caplog) == ["node 0: started"]
    # What the roles of images/manifests grant is what was needed, no more; less would have failed.
    assert service.cluster.rights.used == service.cluster.rights.granted


def message_with(caplog: pytest.LogCaptureFixture, pattern: str) -> str | None:
    return next((message for message in caplog.messages if re.search(pattern, message)), None)


def test_a_log_with_carriage_returns_is_shown(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")

    train(workspace, r"printf 'loading\rloading 50%%\rloaded\n'; sleep 1.5; printf 'form\ffeed\n'; sleep 1.5; echo end")

    assert len(lines_of_node(caplog)) == 3
    assert lines_of_node(caplog)[-1] == "node 0: end"


@pytest.mark.parametrize(("limit", "policy"), [(0, "Never"), (1, "OnFailure")])
def test_a_node_that_fails_ends_the_step_with_its_exit_code_and_its_last_lines(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture, limit: int, policy: str
) -> None:
    service.cluster.set_runtime(backoff_limit=limit, restart_policy=policy)
    script = 'if [ "$PET_NODE_RANK" = 1 ]; then sleep 0.5; echo out of luck; exit 3; fi; exec sleep 60'

    with pytest.raises(TrainingError, match=r"failed \(FailedJobs.*node 1 \(pod \S+\) ended with exit code 3"):
        train(workspace, script, nodes=2)

    assert "out of luck" in caplog.text
    assert all(pod.stopping.is_set() or pod.plan.index == 1 for pod in service.cluster.pods)


def test_a_node_out_of_memory_says_so(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor
) -> None:
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")

    # What the node says of it is not what happened.
    failure = workspace.run_directory(RUN) / "trainjob" / "node-0" / "failure.json"
    said = '{"kind": "TrainingError", "message": "process 0 ended with exit code -9"}'

    training = in_background.submit(
        train, workspace, f"mkdir -p {failure.parent}; echo '{said}' > {failure}; touch {workspace.root}/up; {HANG}"
    )
    service.wait_for((workspace.root / "up").exists)
    service.running_pod().exhaust_memory()

    with pytest.raises(TrainingError, match="exit code 137, OOMKilled.* Raise train_memory=64Gi"):
        training.result(timeout=60)


def test_a_preempted_pod_is_waited_for(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    done = workspace.root / "done"

    training = in_background.submit(train, workspace, f"echo begun; until [ -e {done} ]; do sleep 0.1; done; echo done")
    service.wait_for(lambda: lines_of_node(caplog))
    service.pod().preempt()
    done.touch()
    training.result(timeout=60)

    assert lines_of_node(caplog) == ["node 0: begun", "node 0: begun", "node 0: done"]


def test_a_job_that_failed_by_preemption_is_started_again(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    service.cluster.set_runtime(backoff_limit=0, restart_policy="Never")
    done = workspace.root / "done"

    # A training that is told to end saves a checkpoint first, which takes its time.
    script = f"trap 'sleep 2.5; exit 143' TERM; until [ -e {done} ]; do sleep 0.1; done"
    training = in_background.submit(train, workspace, script)
    service.wait_for(lambda: message_with(caplog, "Running"))
    service.pod().preempt()
    service.wait_for(lambda: training.done() or len(service.cluster.played) == 2)
    done.touch()
    training.result(timeout=60)

    assert [len(controller.pods) for controller in service.cluster.played] == [1, 1]


def test_a_failure_that_was_overcome_is_no_reason_for_what_comes_hours_later(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    service.cluster.set_runtime(backoff_limit=1, restart_policy="OnFailure")
    done = workspace.root / "done"

    training = in_background.submit(train, workspace, f"until [ -e {done} ]; do sleep 0.1; done")
    service.running_pod().exhaust_memory()
    service.wait_for(lambda: message_with(caplog, r"Running \(restarted 1 times\)"))
    service.pod().preempt()
    service.wait_for(lambda: training.done() or len(service.cluster.played) == 2)
    done.touch()
    training.result(timeout=60)

    assert message_with(caplog, "exit code 137, OOMKilled")
    assert len(service.cluster.played) == 2


def test_a_path_that_was_missing_for_a_while_does_not_end_the_job(service: Service, workspace: Workspace) -> None:
    folder = workspace.run_directory(RUN) / "trainjob" / "node-0"
    said = '{"kind": "MissingPathError", "message": "the hub is away"}'
    leave = f"echo '{said}' > {folder}/failure.json"

    train(workspace, f"mkdir {folder} || exit 0; {leave}; exit 1")

    assert len(service.cluster.played) == 1


def test_a_deadline_ends_the_job_and_the_step(service: Service, workspace: Workspace) -> None:
    service.cluster.faults.obstacle = Obstacle.NO_GPU

    with pytest.raises(
        TrainingError, match="train_deadline_hours=0.000[0-9]+ of the step's first try .*Raise the deadline"
    ):
        train(workspace, "true", deadline_hours=2 / 3600)

    service.wait_for(lambda: not service.cluster.store.has("trainjobs", "science", NAME))


def test_a_job_that_somebody_deletes_ends_the_step(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor
) -> None:
    training = in_background.submit(train, workspace, HANG)
    service.running_pod()
    service.cluster.delete_job("science", NAME, "Background")

    with pytest.raises(TrainingError, match=f"TrainJob {NAME} is gone: somebody deleted it"):
        training.result(timeout=60)


def test_what_a_node_says_that_trying_again_would_not_mend_ends_the_job(service: Service, workspace: Workspace) -> None:
    folder = workspace.run_directory(RUN) / "trainjob" / "node-0"
    failure = '{"kind": "DataError", "message": "train.parquet has no rows. Give it some."}'
    script = f"mkdir -p {folder}; echo '{failure}' > {folder}/failure.json; exit 1"

    with pytest.raises(DataError, match="train.parquet has no rows. Give it some."):
        train(workspace, script)

    service.wait_for(lambda: not service.cluster.store.has("trainjobs", "science", NAME))


def test_progress_is_read_from_the_workspace_where_the_log_may_not_be_read(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    service.cluster.faults.without_right.add("pods/log")
    folder = workspace.root / "training"
    metrics = '{"step": 3, "total_steps": 12, "loss": 0.5}'

    train(workspace, f"sleep 1; mkdir -p {folder}; echo '{metrics}' > {folder}/metrics.jsonl; sleep 1.5")

    assert "step 3 of 12: loss 0.5000" in caplog.messages
    assert "this step may not read logs in namespace science" in caplog.text
    assert lines_of_node(caplog) == []


def test_a_cluster_without_kubeflow_trainer_is_named(service: Service, workspace: Workspace) -> None:
    service.cluster.store.delete("customresourcedefinitions", "", "trainjobs.trainer.kubeflow.org")

    with pytest.raises(ConfigError, match="no TrainJobs: Kubeflow Trainer is not installed"):
        train(workspace, "true")


def test_a_runtime_that_does_not_exist_is_named(service: Service, workspace: Workspace) -> None:
    service.cluster.store.delete("clustertrainingruntimes", "", "torch-distributed")

    with pytest.raises(ClusterError, match='"torch-distributed" not found'):
        train(workspace, "true")


def test_without_the_right_to_create_jobs_the_step_says_what_to_apply(service: Service, workspace: Workspace) -> None:
    service.cluster.faults.without_right.add("trainjobs")

    with pytest.raises(ClusterError, match="cannot .* resource .*trainjobs.*Apply images/manifests"):
        train(workspace, "true")


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2", "2.3"])
def test_without_the_right_to_read_the_crd_the_pods_see_the_workspace_all_the_same(
    make_service: Callable[..., Service], workspace_folder: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    service = make_service(version)
    monkeypatch.setenv("KUBECONFIG", str(service.kubeconfig))
    service.cluster.faults.without_right.add("customresourcedefinitions")
    (workspace_folder / "seen").touch()

    train(Workspace(workspace_folder), f"cat {workspace_folder}/seen && touch {workspace_folder}/written")

    assert (workspace_folder / "written").exists()


STEP = """
import logging, sys
from tests.kubeflow.test_faults import train
from osft.workspace import Workspace
from pathlib import Path
logging.basicConfig(level=logging.INFO)
train(Workspace(Path(sys.argv[1])), sys.argv[2])
"""


def start_step(workspace: Workspace, script: str) -> subprocess.Popen[str]:
    """Start the step as a process of its own."""
    command = [sys.executable, "-c", STEP, str(workspace.root), script]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, stderr=subprocess.PIPE)


def terminate_when(service: Service, what: Callable[[], object]) -> float:
    """Send SIGTERM to this process, whose main thread is the step, as soon as ``what`` holds; return when."""
    service.wait_for(what)
    os.kill(os.getpid(), signal.SIGTERM)
    return time.monotonic()


def test_sigterm_deletes_the_job_at_once_also_when_the_server_is_failing(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor
) -> None:
    service.cluster.faults.answer(503, times=8, verb="delete")

    terminating = in_background.submit(terminate_when, service, lambda: service.running_pod())
    with pytest.raises(PreemptedError, match=f"stopped by SIGTERM and has deleted TrainJob {NAME}"):
        train(workspace, HANG)
    seconds = time.monotonic() - terminating.result()

    # With the pauses of other requests it would have taken most of a minute.
    assert seconds < 8
    assert service.cluster.faults.remaining() == []
    service.wait_for(lambda: not service.cluster.store.has("trainjobs", "science", NAME))
    assert service.wait_for(lambda: not service.pod().status)


def test_sigterm_deletes_also_a_job_whose_creation_is_on_its_way(
    service: Service, workspace: Workspace, in_background: ThreadPoolExecutor
) -> None:
    service.cluster.faults.delay_seconds = 0.2

    terminating = in_background.submit(
        terminate_when, service, lambda: "create" in [verb for verb, _ in service.cluster.requests]
    )
    with pytest.raises(PreemptedError, match=f"stopped by SIGTERM and has deleted TrainJob {NAME}"):
        train(workspace, HANG)
    terminating.result()

    assert len(service.cluster.played) == 1
    service.wait_for(lambda: not service.cluster.store.has("trainjobs", "science", NAME))


def test_a_retried_step_follows_the_job_that_it_has_started(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "osft")
    done = workspace.root / "done"
    script = f"echo begun; until [ -e {done} ]; do sleep 0.1; done; echo done"
    with start_step(workspace, script) as first:
        service.running_pod()
        first.kill()

    done.touch()
    train(workspace, script)

    assert f"following TrainJob {NAME}, which this run has started already" in caplog.messages
    assert lines_of_node(caplog) == ["node 0: begun", "node 0: done"]
    assert len(service.cluster.played) == 1
