"""The last steps and their conditions: a model is published only when it passed, registered where there is a registry.

A pipeline of its own because KFP's local runner (2.17) cannot read one of several outputs of a step in a
condition, and takes it as not met. The inputs of a pipeline it can read, so the same condition holds on a laptop.
"""

from kfp import dsl

from components.model_promotion import model_promotion
from components.model_registration import model_registration
from pipelines.placement import give_resources, give_secret, mount_workspace

# The second is the path of a file, for example on the volume.
REGISTRY_KEYS = ("MODEL_REGISTRY_TOKEN", "MODEL_REGISTRY_CA_CERT")


@dsl.pipeline(name="promotion", description="Publish the model if it passed.")
def promotion(
    passed: bool,
    run_id: str,
    model_name: str,
    registry_address: str,
    registry_location: str,
    registry_secret: str,
    workspace_pvc: str,
    base: dsl.Input[dsl.Artifact],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Publish the model if it passed, and register it if there is a registry.

    Args:
        passed: whether forgetting and gain are within their limits.
        run_id: id of the pipeline run.
        model_name: name whose newest version the model becomes.
        registry_address: Model Registry to register it in; empty: none.
        registry_location: where the registry says that the volume is; empty: the claim.
        registry_secret: secret with the registry's token.
        workspace_pvc: claim of the shared volume.
        base: manifest of what the run started from.
        tuned: manifest of the trained model.
        evaluation: manifest of the evaluation.
    """
    with dsl.If(passed == True, name="passed"):  # noqa: E712 kfp builds the condition from ==
        promoted = model_promotion(run_id=run_id, model_name=model_name, base=base, tuned=tuned, evaluation=evaluation)
        give_resources(promoted, cpu="2", memory="8Gi")
        mount_workspace(promoted, workspace_pvc)
        with dsl.If(registry_address != "", name="registry"):
            registered = model_registration(
                run_id=run_id,
                model_name=model_name,
                address=registry_address,
                location=registry_location,
                claim=workspace_pvc,
                promoted=promoted.outputs["promoted"],
            )
            give_resources(registered, cpu="1", memory="2Gi")
            mount_workspace(registered, workspace_pvc)
            give_secret(registered, registry_secret, REGISTRY_KEYS)
