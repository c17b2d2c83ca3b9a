"""Training as a TrainJob, from an order to a finished run: create, follow, start again after a preemption, clean up.

There is one job of a run at any time; a new one goes on from the checkpoints of the one before. A job that has ended is
deleted whatever its end: while one that failed is there, a runtime may have its parts removed, and Trainer would then
start them again.

SIGTERM deletes the job. It means that the run was cancelled, or that the step's own pod is moved; the two cannot be
told apart. In the second case the retried step starts a new job, which goes on from the checkpoint that the pods of the
old one write when they are told to end. Argo leaves a step hardly a second between SIGTERM and SIGKILL, so the deletion
comes before anything else. A step that is killed before that leaves the job running.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from osft.config import TrainingConfig
from osft.errors import OsftError, PreemptedError, TrainingError
from osft.kubeflow.cluster import Cluster
from osft.kubeflow.follow import Follower, JobEnd, Outcome, Progress
from osft.kubeflow.lifecycle import JobOfRun, too_late
from osft.kubeflow.pods import OUT_OF_MEMORY
from osft.kubeflow.trainjob import API_VERSION, TrainJob, TrainJobSettings, make_manifest
from osft.kubeflow.versions import OverridesField, field_in_crd, field_kept
from osft.processes.order import WorkOrder
from osft.training.result import METRICS_NAME, RESULT_NAME
from osft.workspace import WORKSPACE_VARIABLE, Workspace, sha256_of_file

logger = logging.getLogger(__name__)

SECONDS_PER_HOUR = 3600.0
# Preemptions in a row that the training takes without a single step in between.
MAX_RESTARTS_WITHOUT_PROGRESS = 3
# What a training pod takes over from its step: where models are kept and fetched from, and that logs have no bars.
INHERITED_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TQDM_DISABLE")


class _Cancelled(BaseException):
    """SIGTERM came. Not an Exception: nothing on the way may take it for a failed request."""


def train_on_cluster(config: TrainingConfig, settings: TrainJobSettings, *, run_id: str, workspace: Workspace) -> None:
    """Train as ``config`` says in a TrainJob, and return when it has succeeded.

    Every path in it lies on the workspace, which the training pods see at the same place. What the job leaves is in
    its ``ckpt_output_dir``, as of a training in this process.

    Args:
        config: what to train; nodes and processes are those of ``settings``.
        settings: which nodes train.
        run_id: id of the pipeline run; the job is named after it.
        workspace: the shared volume as this step sees it.

    Raises:
        OsftError: what the node that failed first raised, of the same kind and with the same message.
        ClusterError: if Kubernetes refuses the job, or cannot be reached for a quarter of an hour.
        PreemptedError: if this process got SIGTERM; the job is deleted.
        TrainingError: if the job failed otherwise, disappeared, or missed its deadline.
    """
    result = config.checkpoint_directory / RESULT_NAME
    is_same_order = _save_order(WorkOrder(config=config), _order_file(workspace, run_id))
    job = _make_job(settings, run_id=run_id, workspace=workspace)
    cluster = Cluster()
    if is_same_order and result.is_file() and cluster.find_trainjob(job.name) is None:
        logger.info("the TrainJob of this run has finished already; nothing to do")
        return
    if not is_same_order:
        # What was trained before must not pass for this one's result.
        result.unlink(missing_ok=True)
    job_of_run = JobOfRun(cluster, job)
    with _raising_on_sigterm():
        try:
            _train(cluster, job, job_of_run, Progress(config.checkpoint_directory / METRICS_NAME))
        except _Cancelled:
            done = f"has deleted TrainJob {job.name}" if job_of_run.cancel() else "has created no TrainJob"
            raise PreemptedError(
                f"this step was stopped by SIGTERM and {done}. A retry of it goes on from the last checkpoint."
            ) from None


def check_cluster(settings: TrainJobSettings, *, run_id: str, workspace: Workspace) -> None:
    """Have the API server say whether it would take the job of ``settings``, and create nothing.

    Raises:
        ConfigError: if there are no TrainJobs on this cluster, or none that can be given the workspace.
        ClusterError: if a right, the runtime or something else is missing; the message says what.
    """
    job = _make_job(settings, run_id=run_id, workspace=workspace)
    cluster = Cluster()
    cluster.check_trainjob(_make_manifest(cluster, job))
    logger.info("a TrainJob of runtime %s can be created in namespace %s", settings.runtime, cluster.namespace)


def _order_file(workspace: Workspace, run_id: str) -> Path:
    return workspace.run_directory(run_id) / "trainjob" / "order.json"


def _make_job(settings: TrainJobSettings, *, run_id: str, workspace: Workspace) -> TrainJob:
    """Return the job of a run, with what its pods take over from this process's environment."""
    order_file = _order_file(workspace, run_id)
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return TrainJob(
        run_id=run_id,
        settings=settings,
        order_file=order_file,
        order_sha256=sha256_of_file(order_file) if order_file.is_file() else "",
        workspace=workspace.root,
        inherited_env={**inherited, WORKSPACE_VARIABLE: str(workspace.root)},
    )


def _save_order(order: WorkOrder, path: Path) -> bool:
    """Write the order unless it is the one that is there, and return whether it is.

    So the file's time is that of the first try of the step: :func:`_deadline`.
    """
    new = path.with_suffix(".new")
    order.save(new)
    if path.is_file() and path.read_bytes() == new.read_bytes():
        new.unlink()
        return True
    new.replace(path)
    return False


def _deadline(job: TrainJob) -> float:
    """Return the monotonic time at which the training is given up: the retries of a step have one deadline together."""
    hours = job.settings.deadline_hours
    if not hours:
        return float("inf")
    seconds_since_start = time.time() - job.order_file.stat().st_mtime
    return time.monotonic() + hours * SECONDS_PER_HOUR - seconds_since_start


def _train(cluster: Cluster, job: TrainJob, job_of_run: JobOfRun, progress: Progress) -> None:
    """Create or find the job, follow it, and start it again for as long as only preemptions end it."""
    deadline = _deadline(job)
    manifest = _make_manifest(cluster, job)
    restarts_without_progress, best_step = 0, progress.read_step()
    while True:
        uid = job_of_run.find_or_create(manifest, deadline)
        end = Follower(cluster, job, uid, progress).follow(deadline)
        if end.outcome is Outcome.COMPLETE:
            logger.info("TrainJob %s has succeeded", job.name)
            job_of_run.delete()
            return
        step = progress.read_step()
        restarts_without_progress = 0 if step > best_step else restarts_without_progress + 1
        best_step = max(best_step, step)
        if not _is_preempted(end) or restarts_without_progress >= MAX_RESTARTS_WITHOUT_PROGRESS:
            _log_ends(end)
            job_of_run.delete()
            raise _error_of(job, end)
        logger.warning("TrainJob %s was preempted at step %d; starting it again", job.name, step)
        job_of_run.delete()


def _make_manifest(cluster: Cluster, job: TrainJob) -> dict[str, Any]:
    kind = "TrainingRuntime" if cluster.has_runtime(job.settings.runtime) else "ClusterTrainingRuntime"

    def try_field(field: OverridesField) -> Mapping[str, Any]:
        manifest = make_manifest(job, kind, field)
        # The job of the run may exist already, and then nobody could pretend to create it.
        manifest["metadata"]["name"] += "-try"
        return cluster.try_trainjob(manifest)

    crd = cluster.find_crd()
    field = field_kept(try_field) if crd is None else field_in_crd(crd, API_VERSION)
    return make_manifest(job, kind, field)


def _is_preempted(end: JobEnd) -> bool:
    """Return whether the job failed only because the cluster took pods away."""
    if end.outcome is not Outcome.FAILED or any(one.reason == OUT_OF_MEMORY for one in end.node_ends):
        return False
    if end.disrupted:
        return True
    # When one node fails, the others are told to end.
    return end.node_ends[0].was_told_to if end.node_ends else isinstance(end.failure, PreemptedError)


def _log_ends(end: JobEnd) -> None:
    """Log how the nodes ended: with the job its pods and their logs go."""
    ends = end.node_ends or end.overcome_ends
    for node_end in ends:
        logger.error("%s", node_end)
    if ends:
        logger.error("the last lines of node %d:\n%s", ends[0].node, "\n".join(ends[0].last_lines))


def _error_of(job: TrainJob, end: JobEnd) -> OsftError:
    """Return why the job has not succeeded."""
    if end.outcome is Outcome.TOO_LATE:
        return TrainingError(too_late(job, end.reason))
    ends = end.node_ends or end.overcome_ends
    # Before what a node said: of one that is out of memory the others only say that they have lost it.
    is_out_of_memory = any(one.reason == OUT_OF_MEMORY for one in ends)
    if end.failure and not is_out_of_memory:
        return end.failure
    mend = f"Raise train_memory={job.settings.memory}" if is_out_of_memory else "See the lines above"
    return TrainingError(
        f"TrainJob {job.name} failed ({end.reason}): {'; '.join(map(str, ends)) or 'no node said why'}. {mend}."
    )


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise :class:`_Cancelled` where SIGTERM finds the main thread; a second one ends the process.

    Unlike a training step, a request that waits for its answer may be left at any point.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Cancelled

    earlier = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)
