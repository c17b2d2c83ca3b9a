"""Where the training of a pipeline's run happens: in its step, or in the pods of a TrainJob that the step follows.

A step that only follows a job must not hold GPUs while the job waits for them. KFP cannot compute one resource of a pod
from another parameter, so an early step does, and what it writes is what the training step requests. That step also
asks the API server whether it would take the job: a missing right or runtime is known before GPU hours are spent.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osft.errors import ConfigError
from osft.kubeflow.trainjob import TrainJobSettings
from osft.workspace import Workspace

# compile.py sets it in every step to the image that training runs in.
IMAGE_VARIABLE = "OSFT_TRAINER_IMAGE"
# Of a step that follows a job.
FOLLOWER_CPU = "1"
FOLLOWER_MEMORY = "4Gi"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What the training step requests, and the job that it creates. All are texts, as KFP puts them into a pod."""

    gpus: str
    cpu: str
    memory: str
    trainjob: str
    """A :class:`~osft.kubeflow.trainjob.TrainJobSettings` as JSON; empty: the step itself trains."""


def place_training(chosen: Mapping[str, Any], *, run_id: str, workspace: Workspace) -> Placement:
    """Return where a run trains, after checking that it can.

    Args:
        chosen: every field of :class:`~osft.kubeflow.trainjob.TrainJobSettings` by name, as the pipeline's parameters
            have it; an empty ``runtime`` trains in the step, an empty ``image`` is the training step's.
        run_id: id of the pipeline run.
        workspace: the shared volume.

    Raises:
        ConfigError: if a value is not allowed, or several nodes are asked for without a runtime.
        ClusterError: if the cluster would not take the job.
    """
    if not chosen["runtime"]:
        if chosen["nodes"] != 1:
            raise ConfigError(
                f"train_num_nodes={chosen['nodes']} needs a TrainJob. Set train_runtime, e.g. to torch-distributed."
            )
        return Placement(gpus=str(chosen["gpus_per_node"]), cpu=chosen["cpu"], memory=chosen["memory"], trainjob="")
    image = chosen["image"] or os.environ.get(IMAGE_VARIABLE, "")
    settings = TrainJobSettings(**{**chosen, "image": image, "tolerations": tuple(chosen["tolerations"])})
    # Imported here: with it comes the Kubernetes client, which a training in the step does without.
    from osft.kubeflow.run import check_cluster

    check_cluster(settings, run_id=run_id, workspace=workspace)
    return Placement(gpus="0", cpu=FOLLOWER_CPU, memory=FOLLOWER_MEMORY, trainjob=settings.to_json())
