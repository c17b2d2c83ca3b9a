"""The ``osft compare`` command: runs of one workspace side by side, in a terminal, as a page, as JSON."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    workspace: Annotated[Path, typer.Argument(help="Folder of the workspace.")],
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Ids of runs: the folders in runs/.")] = None,
    last: Annotated[int, typer.Option(min=0, help="Take the newest runs as well, this many.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Show runs side by side: what differed between them, and what each gained and forgot."""
    # Once the arguments hold: the command's help must not wait for them.
    import orjson
    from rich.console import Console

    from osft.comparison.compared_run import choose_runs, plain_run, read_run
    from osft.comparison.comparison import compare_runs
    from osft.comparison.page import write_comparison_page
    from osft.comparison.table import render_comparison
    from osft.lookup import open_workspace

    place = open_workspace(workspace)
    comparison = compare_runs([read_run(place, name) for name in choose_runs(place, runs or [], last)])
    if as_json:
        plain = [plain_run(run) for run in comparison.runs]
        typer.echo(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console()
        console.print(render_comparison(comparison, console.width))
    if html is not None:
        write_comparison_page(comparison, html)
        typer.echo(f"page: {html}", err=as_json)
