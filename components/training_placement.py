"""Beside steps 1 to 4: where the training will run, and whether it can."""

from typing import NamedTuple

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def training_placement(
    run_id: str,
    runtime: str,
    num_nodes: int,
    gpus_per_node: int,
    cpu: str,
    memory: str,
    image: str,
    queue: str,
    labels: dict,
    node_selector: dict,
    tolerations: list,
    env: dict,
    deadline_hours: float,
    hub_secret: str,
    workspace_pvc: str,
) -> NamedTuple("Placement", [("gpus", str), ("cpu", str), ("memory", str), ("trainjob", str)]):  # type: ignore[valid-type]
    """Decide what the training step requests, and check that the cluster would take its TrainJob.

    Args:
        run_id: id of the pipeline run.
        runtime: training runtime; empty: the step itself trains.
        num_nodes: nodes of the TrainJob.
        gpus_per_node: GPUs of a node, or of the step.
        cpu: CPUs of a node, or of the step.
        memory: memory of a node, or of the step.
        image: image of the nodes; empty: the step's.
        queue: Kueue's local queue.
        labels: further labels of the TrainJob.
        node_selector: labels of the machines that may train.
        tolerations: taints of machines that may train, as Kubernetes writes them.
        env: environment variables of the nodes.
        deadline_hours: hours after which the job is given up; 0: never.
        hub_secret: secret with HF_TOKEN.
        workspace_pvc: claim of the shared volume.

    Returns:
        GPUs, CPUs and memory of the training step, and the TrainJob that it creates, as JSON; empty without one.
    """
    from dataclasses import astuple

    from osft.kubeflow.placement import place_training
    from osft.logs import configure_logging
    from osft.workspace import Workspace

    configure_logging()
    chosen = {
        "runtime": runtime,
        "nodes": num_nodes,
        "gpus_per_node": gpus_per_node,
        "cpu": cpu,
        "memory": memory,
        "image": image,
        "queue": queue,
        "labels": labels,
        "node_selector": node_selector,
        "tolerations": tolerations,
        "env": env,
        "deadline_hours": deadline_hours,
        "hub_secret": hub_secret,
        "workspace_claim": workspace_pvc,
    }
    return astuple(place_training(chosen, run_id=run_id, workspace=Workspace.from_environment()))
