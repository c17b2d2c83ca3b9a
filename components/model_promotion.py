"""Step 7: a model that passed becomes the current version of its name, unless another run was faster."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def model_promotion(
    run_id: str,
    model_name: str,
    base: dsl.Input[dsl.Artifact],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    promoted: dsl.Output[dsl.Model],
) -> None:
    """Publish the model as ``models/<model_name>/vNNNN`` with all that the runs after it need.

    Args:
        run_id: id of the pipeline run.
        model_name: name whose current version this becomes.
        base: manifest of what the run started from; that must be what is current still.
        tuned: manifest of the trained model.
        evaluation: manifest of the results that let it pass.
        promoted: manifest of the published version.
    """
    from osft.logs import configure_logging
    from osft.versions.promotion import promote_model
    from osft.workspace import Manifest, Workspace

    configure_logging()
    manifest = promote_model(
        Workspace.from_environment(),
        run_id=run_id,
        model_name=model_name,
        base=Manifest.load(base.path),
        training=Manifest.load(tuned.path),
        evaluation=Manifest.load(evaluation.path),
    )
    promoted.metadata.update(path=manifest.path, run_id=run_id)
    manifest.save(promoted.path)
