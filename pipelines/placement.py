"""Where a step runs and what it sees there: resources, GPUs, the shared volume, secrets."""

from collections.abc import Sequence

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from osft.kubeflow.trainjob import GPU_RESOURCE
from osft.workspace import DEFAULT_WORKSPACE_PATH

# Of a step that is worth trying again by itself: its pod may be preempted, or its machine lost. A minute, and then two,
# is what a scheduler takes to find another machine.
RETRIES = 2
SECONDS_BEFORE_RETRY = "60s"


def give_resources(
    task: PipelineTask, cpu: str | PipelineParameterChannel, memory: str | PipelineParameterChannel
) -> None:
    """Request what the step is limited to, so that its pod is neither throttled nor evicted by surprise."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)


def let_retry(task: PipelineTask) -> None:
    """Have a step that has failed started again; it goes on where it was."""
    task.set_retry(num_retries=RETRIES, backoff_duration=SECONDS_BEFORE_RETRY, backoff_factor=2.0)


def give_gpus(task: PipelineTask, gpus: str | PipelineParameterChannel) -> None:
    """Give the step ``gpus`` NVIDIA GPUs; as text, since of a number KFP's driver reads nothing."""
    task.set_accelerator_type(GPU_RESOURCE).set_accelerator_limit(gpus)


def give_shared_memory(task: PipelineTask) -> None:
    """Mount memory at ``/dev/shm``: NCCL's processes talk through it, and a pod has 64 MiB of it by default."""
    kubernetes.empty_dir_mount(task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory")  # noqa: S108


def mount_workspace(task: PipelineTask, claim: str) -> None:
    """Mount the shared volume where every step looks for it."""
    kubernetes.mount_pvc(task, pvc_name=claim, mount_path=DEFAULT_WORKSPACE_PATH)
    # KFP's cache would hand on a manifest whose files on the volume may be gone. The steps know what is done.
    task.set_caching_options(False)


def give_secret(task: PipelineTask, secret: str, keys: Sequence[str]) -> None:
    """Set environment variables of the step from the keys of like name in a secret, where it exists."""
    kubernetes.use_secret_as_env(task, secret, secret_key_to_env={key: key for key in keys}, optional=True)
