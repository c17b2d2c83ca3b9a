"""Beside the first steps: old versions lose their weights and old runs go, so that the volume does not fill up."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def workspace_pruning(
    model_name: str,
    keep_versions: int,
    keep_runs: int,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Remove what is beyond the newest versions and runs of one model, and list it.

    Args:
        model_name: name whose versions and runs are looked at.
        keep_versions: newest versions that keep their weights; 0 keeps all.
        keep_runs: newest finished runs whose folders stay; 0 keeps all.
        metrics: bytes that were freed.
        summary: what was removed.
    """
    from pathlib import Path

    from osft.logs import configure_logging
    from osft.versions.pruning import prune, pruned_as_markdown
    from osft.workspace import Workspace

    configure_logging()
    removed = prune(Workspace.from_environment(), model_name, keep_versions=keep_versions, keep_runs=keep_runs)
    metrics.log_metric("pruned_bytes", sum(item.size_bytes for item in removed))
    Path(summary.path).write_text(pruned_as_markdown(removed))
