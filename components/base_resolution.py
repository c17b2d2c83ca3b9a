"""Step 0: what the run starts from, looked up once, so that every step of the run and every retry takes the same."""

from typing import NamedTuple

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def base_resolution(
    run_id: str,
    model_base: str,
    model_origin: str,
    model_name: str,
    registry_address: str,
    registry_location: str,
    registry_claim: str,
    base: dsl.Output[dsl.Artifact],
) -> NamedTuple("Outputs", [("model", str)]):  # type: ignore[valid-type]
    """Resolve ``model_base`` and write it down in ``runs/<run_id>/base``; refuse a registry that cannot be used.

    Args:
        run_id: id of the pipeline run.
        model_base: a Hugging Face id, a path, ``pvc://`` or ``promoted://<model_name>``, the newest promoted version.
        model_origin: what ``promoted://`` stands for while nothing is promoted.
        model_name: name under which the run's model is promoted if it passes.
        registry_address: the model registry that the last step is given; empty: none.
        registry_location: where the registry will say that the volume is; empty: pvc:// with the claim.
        registry_claim: claim of the shared volume.
        base: manifest of what was resolved.

    Returns:
        The model that the steps load.
    """
    from collections import namedtuple

    from osft.logs import configure_logging
    from osft.registration.promoted import check_registry
    from osft.versions.base_model import BaseModel, resolve_base
    from osft.workspace import Workspace

    configure_logging()
    check_registry(registry_address, location=registry_location, claim=registry_claim)
    workspace = Workspace.from_environment()
    manifest = resolve_base(
        workspace,
        run_id=run_id,
        model_base=model_base,
        model_origin=model_origin,
        promote_model_name=model_name,
    )
    resolved = BaseModel.load(workspace.resolve(manifest.path))
    base.metadata.update(path=manifest.path, model=resolved.model, parent=resolved.parent or "", origin=resolved.origin)
    manifest.save(base.path)
    Outputs = namedtuple("Outputs", ["model"])
    return Outputs(resolved.model)
