"""The ``osft lineage`` command: a model's chain of versions as a table, as a page, as JSON."""

from pathlib import Path
from typing import Annotated

import typer


def lineage(
    workspace: Annotated[Path, typer.Argument(help="Folder of the workspace.")],
    model_name: Annotated[str, typer.Argument(help="Name under which the model is promoted.")],
    version: Annotated[str | None, typer.Option(help="Last version of the chain. [default: the current one]")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Show a model's versions: where each comes from, what it scores on every task, what the chain lost."""
    # Once the arguments hold: the command's help must not wait for them.
    import orjson
    from rich.console import Console

    from osft.lookup import open_workspace
    from osft.versions.chain_summary import summarize_chain
    from osft.versions.lineage_page import write_lineage_page
    from osft.versions.lineage_table import render_lineage

    summary = summarize_chain(open_workspace(workspace), model_name, version)
    if as_json:
        typer.echo(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console()
        console.print(render_lineage(summary, console.width))
    if html is not None:
        write_lineage_page(summary, html)
        typer.echo(f"page: {html}", err=as_json)
