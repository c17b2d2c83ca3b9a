"""Before the trainings of a sweep: a run for each ratio, which shares the steps that are done already."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def ratio_runs(
    run_id: str,
    ratios: list,
    base: dsl.Input[dsl.Artifact],
    rows: dsl.Input[dsl.Dataset],
    valid: dsl.Input[dsl.Dataset],
    processed: dsl.Input[dsl.Dataset],
) -> list:
    """Check the ratios, and make ``runs/<run_id>-ratio-<ratio>`` for each, with links to the steps before.

    Args:
        run_id: id of the pipeline run.
        ratios: shares of each weight's singular directions that may move, each above 0 and at most 1, at least two.
        base: manifest of what the run starts from.
        rows: manifest of the downloaded rows.
        valid: manifest of the rows that are valid.
        processed: manifest of the tokenized rows.

    Returns:
        The runs, the smallest ratio first: ``[{"run_id": ..., "ratio": ...}, ...]``.
    """
    from dataclasses import asdict

    from osft.logs import configure_logging
    from osft.sweep.ratio_runs import prepare_ratio_runs
    from osft.workspace import Manifest, Workspace

    configure_logging()
    steps = {"base": base, "raw": rows, "valid": valid, "processed": processed}
    runs = prepare_ratio_runs(
        Workspace.from_environment(),
        run_id,
        ratios,
        {step: Manifest.load(artifact.path) for step, artifact in steps.items()},
    )
    return [asdict(run) for run in runs]
