"""The commands ``osft rollback`` and ``osft prune``."""

from pathlib import Path
from typing import Annotated

import typer

WorkspaceArgument = Annotated[Path, typer.Argument(help="Folder of the workspace.")]
ModelArgument = Annotated[str, typer.Argument(help="Name under which the model is promoted.")]


def rollback(
    workspace: WorkspaceArgument,
    model_name: ModelArgument,
    to: Annotated[str | None, typer.Option(help="Version, e.g. v0002. [default: the current one's parent]")] = None,
) -> None:
    """Make an earlier version the current one: the next run starts from it. Nothing is deleted."""
    from osft.lookup import open_workspace
    from osft.versions.rollback import rollback as roll_back

    entry = roll_back(open_workspace(workspace), model_name, to)
    typer.echo(f"{model_name}: {entry.version} is the current version, {entry.replaced} was.")


def prune(
    workspace: WorkspaceArgument,
    model_name: ModelArgument,
    keep_versions: Annotated[int, typer.Option(help="Newest versions that keep their weights; 0: all.")] = 0,
    keep_runs: Annotated[int, typer.Option(help="Newest finished runs whose folders stay; 0: all.")] = 0,
) -> None:
    """Remove the weights of old versions and the folders of old runs, and say what went."""
    from rich.filesize import decimal

    from osft.lookup import open_workspace
    from osft.versions.folders import check_model
    from osft.versions.pruning import prune as remove_old

    opened = open_workspace(workspace)
    check_model(opened, model_name)
    removed = remove_old(opened, model_name, keep_versions=keep_versions, keep_runs=keep_runs)
    for item in removed:
        typer.echo(f"removed {item.path}, {decimal(item.size_bytes)}")
    typer.echo(f"{decimal(sum(item.size_bytes for item in removed))} freed")
