"""The sweep in Markdown, for UIs that show no HTML (the pipelines' Markdown artifact)."""

from collections.abc import Sequence
from pathlib import Path

from osft.comparison.comparison import Cell
from osft.evaluation.report.markdown import escape_markdown
from osft.sweep.choice import RatioChoice
from osft.sweep.sentences import CAVEAT, LEGEND
from osft.sweep.table import ratio_table
from osft.workspace import atomic_file


def write_markdown(choice: RatioChoice, path: Path) -> None:
    """Write the summary, atomically."""
    table = ratio_table(choice)
    lines = [
        f"## {'Passed' if choice.passed else 'Not passed'}: ratio {choice.ratio}",
        "",
        f"**{escape_markdown(choice.why)}**",
        "",
        f"| {' | '.join(table.columns)} |",
        f"| {' | '.join(['---:'] * len(table.columns))} |",
        *(_line(row) for row in table.rows),
        "",
        f"{escape_markdown(LEGEND)} **Bold**: the best of a column.",
        "",
        escape_markdown(CAVEAT),
        "",
        *_reasons(choice),
    ]
    with atomic_file(path) as file:
        file.write("\n".join(lines).encode("utf-8", errors="replace"))


def _line(row: Sequence[Cell]) -> str:
    cells = [escape_markdown(cell.text) for cell in row]
    return f"| {' | '.join(f'**{text}**' if cell.is_best else text for cell, text in zip(row, cells, strict=True))} |"


def _reasons(choice: RatioChoice) -> list[str]:
    """Return the sentences of the gate, ratio by ratio."""
    lines = []
    for one in choice.outcomes:
        lines += [f"### Ratio {one.ratio}", "", *(f"- {escape_markdown(reason)}" for reason in one.reasons), ""]
    return lines
