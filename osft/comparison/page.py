"""Runs side by side as one HTML page.

One file, no script, nothing loaded from anywhere: it shows in a sandboxed frame, and the same runs give the same
bytes. Names come from users and from data; the template engine escapes them.
"""

from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader

from osft.comparison.comparison import Comparison
from osft.comparison.loss_curves import color_of, dash_of, draw_losses
from osft.pages import write_page

TEMPLATE_NAME = "comparison.html.j2"


def write_comparison_page(comparison: Comparison, path: Path) -> None:
    """Write the page to ``path``, atomically."""
    write_page(
        path,
        ChoiceLoader([PackageLoader("osft.comparison"), PackageLoader("osft")]),
        TEMPLATE_NAME,
        filters={},
        values={
            "runs": comparison.runs,
            "strokes": [f"{dash_of(place)} {color_of(place)}" for place in range(len(comparison.runs))],
            "sections": comparison.sections,
            "same_settings": comparison.same_settings,
            "losses": draw_losses(comparison.runs),
        },
    )
