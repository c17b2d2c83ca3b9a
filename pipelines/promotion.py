"""The last step and its condition: a model is published only when it passed.

A pipeline of its own because KFP's local runner (2.17) cannot read one of several outputs of a step in a
condition, and takes it as not met. The inputs of a pipeline it can read, so the same condition holds on a laptop.
"""

from kfp import dsl

from components.model_promotion import model_promotion
from pipelines.placement import give_resources, mount_workspace


@dsl.pipeline(name="promotion", description="Publish the model if it passed.")
def promotion(
    passed: bool,
    run_id: str,
    model_name: str,
    workspace_pvc: str,
    base: dsl.Input[dsl.Artifact],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Publish the model if it passed.

    Args:
        passed: whether forgetting and gain are within their limits.
        run_id: id of the pipeline run.
        model_name: name whose newest version the model becomes.
        workspace_pvc: claim of the shared volume.
        base: manifest of what the run started from.
        tuned: manifest of the trained model.
        evaluation: manifest of the evaluation.
    """
    with dsl.If(passed == True, name="passed"):  # noqa: E712 kfp builds the condition from ==
        task = model_promotion(run_id=run_id, model_name=model_name, base=base, tuned=tuned, evaluation=evaluation)
        give_resources(task, cpu="2", memory="8Gi")
        mount_workspace(task, workspace_pvc)
