"""The command ``osft register``."""

from pathlib import Path
from typing import Annotated

import typer


def register(
    workspace: Annotated[Path, typer.Argument(help="Folder of the workspace.")],
    model_name: Annotated[str, typer.Argument(help="Name under which the model is promoted.")],
    address: Annotated[str, typer.Option(help="The registry, https://HOST[:PORT]; its token: MODEL_REGISTRY_TOKEN.")],
    version: Annotated[str | None, typer.Option(help="Such as v0002. [default: the current one]")] = None,
    claim: Annotated[str, typer.Option(help="Claim of the volume that the workspace is.")] = "",
    location: Annotated[
        str, typer.Option(help="Or where else others find it: pvc://CLAIM/PATH or s3://BUCKET/PREFIX.")
    ] = "",
) -> None:
    """Register a promoted version in Kubeflow Model Registry, unless it is registered."""
    import os

    from osft.errors import ConfigError
    from osft.lookup import open_workspace
    from osft.registration.promoted import register_promoted
    from osft.versions.folders import check_model

    if bool(claim) == bool(location):
        raise ConfigError("the registry is told where the workspace is. Give either --claim or --location.")
    opened = open_workspace(workspace)
    check_model(opened, model_name)
    registered = register_promoted(
        opened,
        model_name=model_name,
        version=version,
        address=address,
        location=location,
        claim=claim,
        environment=os.environ,
    )
    typer.echo(f"{registered.uri} is registered: {registered.link}")
