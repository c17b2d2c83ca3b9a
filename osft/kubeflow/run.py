"""Training as a TrainJob, from an order to a finished run: create, follow, start again after a preemption, clean up.

The job's name is made of the run's id, so there is one job of a run at any time, and a step that is retried finds the
job that it started. What the step was told is in the job's fingerprint: the same one is followed, another one, or one
that failed, is replaced, and the new one goes on from the checkpoints of the old one.

SIGTERM deletes the job. It means that the run was cancelled, or that the step's own pod is moved; the two cannot be
told apart. In the second case the retried step starts a new job, which goes on from the checkpoint that the pods of the
old one write when they are told to end. A step that is killed without SIGTERM leaves the job running.
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
from osft.errors import ClusterError, PreemptedError, TrainingError
from osft.kubeflow.cluster import CONFLICT, Cluster
from osft.kubeflow.failures import forget_failures
from osft.kubeflow.follow import (
    SECONDS_BETWEEN_LOOKS,
    Follower,
    JobEnd,
    Outcome,
    Progress,
    condition,
)
from osft.kubeflow.pods import OUT_OF_MEMORY
from osft.kubeflow.trainjob import API_VERSION, FINGERPRINT_ANNOTATION, TrainJob, TrainJobSettings, make_manifest
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
    with _raising_on_sigterm():
        try:
            _train(cluster, job, Progress(config.checkpoint_directory / METRICS_NAME))
        except _Cancelled:
            logger.warning("SIGTERM: deleting TrainJob %s", job.name)
            cluster.delete_trainjob(job.name)
            raise PreemptedError(
                f"this step was stopped by SIGTERM and has deleted TrainJob {job.name}. A retry of it goes on from the "
                "last checkpoint."
            ) from None


def check_cluster(settings: TrainJobSettings, *, run_id: str, workspace: Workspace) -> None:
    """Have the API server say whether it would take the job of ``settings``, and create nothing.

    Raises:
        ConfigError: if there are no TrainJobs on this cluster, or none that can be given the workspace.
        ClusterError: if a right, the runtime or something else is missing; the message says what.
    """
    job = _make_job(settings, run_id=run_id, workspace=workspace)
    cluster = Cluster()
    try:
        cluster.try_trainjob(_make_manifest(cluster, job))
    except ClusterError as error:
        if error.status != CONFLICT:
            raise
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
    """Write the order and return whether it is the one that was there."""
    earlier = path.read_bytes() if path.is_file() else None
    order.save(path)
    return path.read_bytes() == earlier


def _train(cluster: Cluster, job: TrainJob, progress: Progress) -> None:
    """Create or find the job, follow it, and start it again for as long as only preemptions end it."""
    hours = job.settings.deadline_hours
    deadline = time.monotonic() + hours * SECONDS_PER_HOUR if hours else float("inf")
    manifest = _make_manifest(cluster, job)
    restarts_without_progress, best_step = 0, progress.read_step()
    while True:
        _find_or_create(cluster, job, manifest, deadline)
        end = Follower(cluster, job, progress).follow(deadline)
        if end.outcome is Outcome.COMPLETE:
            logger.info("TrainJob %s has succeeded", job.name)
            cluster.delete_trainjob(job.name)
            return
        step = progress.read_step()
        restarts_without_progress = 0 if step > best_step else restarts_without_progress + 1
        best_step = max(best_step, step)
        if not _is_preempted(end) or restarts_without_progress >= MAX_RESTARTS_WITHOUT_PROGRESS:
            _raise_end(cluster, job, end)
        logger.warning("TrainJob %s was preempted at step %d; starting it again", job.name, step)


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


def _find_or_create(cluster: Cluster, job: TrainJob, manifest: Mapping[str, Any], deadline: float) -> None:
    """Leave the run's job there: the one that is, if it is the same and has not failed, else a new one."""
    is_told = False
    while time.monotonic() < deadline:
        found = cluster.find_trainjob(job.name)
        if found is None:
            forget_failures(job.order_file)
            if _create(cluster, job, manifest):
                return
        elif found["metadata"].get("deletionTimestamp"):
            if not is_told:
                logger.info("waiting for the pods of the earlier TrainJob %s to end", job.name)
                is_told = True
            cluster.wait_for_change(found, SECONDS_BETWEEN_LOOKS)
        elif _fingerprint(found) == _fingerprint(manifest) and not condition(found, "Failed"):
            logger.info("following TrainJob %s, which this run has started already", job.name)
            return
        else:
            logger.info("replacing TrainJob %s, which has failed or was told something else", job.name)
            cluster.delete_trainjob(job.name)
    raise TrainingError(
        f"the earlier TrainJob {job.name} is still there after {job.settings.deadline_hours:g} h "
        "(train_deadline_hours). Delete it, or raise the deadline."
    )


def _create(cluster: Cluster, job: TrainJob, manifest: Mapping[str, Any]) -> bool:
    """Create the job; return ``False`` if there is one of its name by now."""
    settings = job.settings
    try:
        cluster.create_trainjob(manifest)
    except ClusterError as error:
        if error.status == CONFLICT:
            return False
        raise
    logger.info(
        "created TrainJob %s: %d nodes with %d GPUs each, runtime %s",
        job.name, settings.nodes, settings.gpus_per_node, settings.runtime,
    )  # fmt: skip
    return True


def _fingerprint(manifest: Mapping[str, Any]) -> str | None:
    fingerprint: str | None = (manifest["metadata"].get("annotations") or {}).get(FINGERPRINT_ANNOTATION)
    return fingerprint


def _is_preempted(end: JobEnd) -> bool:
    """Return whether the job failed only because the cluster took pods away."""
    if end.outcome is not Outcome.FAILED or any(one.reason == OUT_OF_MEMORY for one in end.node_ends):
        return False
    if end.disrupted:
        return True
    # When one node fails, the others are told to end.
    return end.node_ends[0].was_told_to if end.node_ends else isinstance(end.failure, PreemptedError)


def _raise_end(cluster: Cluster, job: TrainJob, end: JobEnd) -> None:
    """Raise why the job has not succeeded, after logging how its nodes ended."""
    for node_end in end.node_ends:
        logger.error("%s", node_end)
    if end.node_ends:
        first = end.node_ends[0]
        logger.error("the last lines of node %d:\n%s", first.node, "\n".join(first.last_lines))
    if end.outcome is not Outcome.FAILED:
        cluster.delete_trainjob(job.name)
    if end.outcome is Outcome.TOO_LATE:
        raise TrainingError(
            f"TrainJob {job.name} has not ended within train_deadline_hours={job.settings.deadline_hours:g} and was "
            f"deleted; its last state: {end.reason}. Raise the deadline; the next run goes on from the last checkpoint."
        )
    if end.failure:
        raise end.failure
    ends = "; ".join(map(str, end.node_ends)) or "no node said why"
    memory = any(one.reason == OUT_OF_MEMORY for one in end.node_ends)
    mend = f"Raise train_memory={job.settings.memory}" if memory else f"See oc describe trainjob {job.name}"
    raise TrainingError(f"TrainJob {job.name} failed ({end.reason}): {ends}. {mend}.")


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
