"""Step 8: the promoted version becomes known to Kubeflow Model Registry, where there is one."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def model_registration(
    run_id: str,
    model_name: str,
    address: str,
    location: str,
    claim: str,
    promoted: dsl.Input[dsl.Model],
    registered: dsl.Output[dsl.Artifact],
) -> None:
    """Register the version with its lineage, its scores and the place of its files; once only, however often called.

    Args:
        run_id: id of the pipeline run.
        model_name: name of the model, and of the registered model.
        address: the registry, https://host[:port] or, inside the cluster, http://host[:port].
        location: where others find the workspace: pvc://claim or s3://bucket/prefix. Empty: pvc:// with the claim.
        claim: claim of the shared volume.
        promoted: manifest of the published version.
        registered: what the registry calls it, as JSON.
    """
    import os
    from dataclasses import asdict
    from pathlib import Path

    from osft.logs import configure_logging
    from osft.registration.promoted import register_promoted
    from osft.workspace import Manifest, Workspace, write_json

    configure_logging()
    registration = register_promoted(
        Workspace.from_environment(),
        model_name=model_name,
        version=Path(Manifest.load(promoted.path).path).name,
        address=address,
        location=location,
        claim=claim,
        environment=os.environ,
    )
    registered.metadata.update(asdict(registration), run_id=run_id)
    write_json(Path(registered.path), registration)
