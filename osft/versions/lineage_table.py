"""The chain of versions in the terminal: a table of the versions, the accuracy matrix, the figures."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from osft.evaluation.report.formats import DASH
from osft.pages import format_count
from osft.versions.chain_summary import ChainSummary, VersionSummary
from osft.versions.matrix_table import figure_lines, render_matrix
from osft.versions.memory_room import memory_line
from osft.versions.score_text import points_text


def render_lineage(summary: ChainSummary, width: int) -> RenderableType:
    """Return all that the terminal shows, in lines of at most ``width`` characters."""
    lines = [*figure_lines(summary.matrix)]
    if summary.memory:
        lines.append(memory_line(summary.memory))
    if summary.others:
        lines.append(f"not in this chain: {', '.join(summary.others)}")
    return Group(
        Text(f"{summary.model_name}, from {summary.origin}", style="bold"),
        _versions_table(summary),
        render_matrix(summary.matrix, width),
        *map(Text, lines),
    )


def _versions_table(summary: ChainSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("version", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("data, run", overflow="fold")
    for name in ("rows", "rho", "forgetting", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for version in summary.versions:
        table.add_row(*_version_cells(version), style="bold" if version.is_current else "")
    return table


def _forgetting_lines(version: VersionSummary) -> Iterator[str]:
    """Yield what the version's evaluation found: against its parent, and against all before it where there are any."""
    yield f"{points_text(version.forgetting)} (\N{LESS-THAN OR EQUAL TO} {points_text(version.forgetting_upper)})"
    if version.cumulative_forgetting is not None:
        yield f"{points_text(version.cumulative_forgetting)} vs best"
    if version.origin_forgetting is not None:
        yield f"{points_text(version.origin_forgetting)} vs origin"


def _version_cells(version: VersionSummary) -> tuple[Text, ...]:
    marks = [mark for mark, shown in (("current", version.is_current), ("pruned", not version.has_weights)) if shown]
    cells = (
        "\n".join((version.version, version.promoted_at[:10], *marks)),
        version.parent or "origin",
        f"{version.data_uri or DASH}\n{version.run_id}",
        DASH if version.rows is None else format_count(version.rows),
        DASH if version.unfreeze_rank_ratio is None else f"{version.unfreeze_rank_ratio:g}",
        "\n".join(_forgetting_lines(version)),
        points_text(version.target_gain, signed=True),
    )
    # Text and not str: rich would read brackets in an address as markup.
    return tuple(Text(cell) for cell in cells)
