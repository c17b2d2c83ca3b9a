"""The losses of several runs in one picture, and each as a line of blocks for the terminal."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from osft.comparison.compared_run import ComparedRun, LossPoint
from osft.svg import svg_element

# Told apart also by those who see no difference between red and green (Okabe & Ito 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("solid", "dashed", "dotted")
"""By the names that both the picture and the page know."""

AXIS_COLOR = "#625e58"
CHART_INCHES = (5.6, 2.9)
MAX_POINTS = 240
"""Of a curve in the picture; more steps are averaged."""

BLOCKS = "▁▂▃▄▅▆▇█"


def color_of(place: int) -> str:
    """Return the colour of a run; beyond the seventh they come again, with other dashes."""
    return COLORS[place % len(COLORS)]


def dash_of(place: int) -> str:
    """Return how the line of a run is drawn: whole for the first seven."""
    return DASHES[place // len(COLORS) % len(DASHES)]


def draw_losses(runs: Sequence[ComparedRun]) -> Markup | None:
    """Return the loss of every run over its steps as an SVG element; None if no run has any."""
    if not any(run.loss for run in runs):
        return None
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    for place, run in enumerate(runs):
        points = thin(run.loss, MAX_POINTS)
        marker = "o" if len(points) == 1 else None
        steps, losses = [point.step for point in points], [point.loss for point in points]
        axes.plot(steps, losses, color=color_of(place), ls=dash_of(place), lw=1.5, marker=marker)
    axes.set_xlabel("optimizer step", color=AXIS_COLOR, fontsize=9)
    axes.set_ylabel("loss (nats a token)", color=AXIS_COLOR, fontsize=9)
    axes.tick_params(colors=AXIS_COLOR, labelsize=8, length=2)
    axes.spines[:].set_color(AXIS_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=AXIS_COLOR, alpha=0.2, lw=0.5)
    return svg_element(figure, title=f"Loss of {', '.join(run.run_id for run in runs if run.loss)}")


def sparkline(points: Sequence[LossPoint], width: int, *, top: float) -> str:
    """Return the loss over the steps as blocks, a full one for ``top``.

    Args:
        points: the steps, in order.
        width: most characters.
        top: loss of the highest block, the same for all runs that are compared.
    """
    shares = (point.loss / top if top > 0 else 0.0 for point in thin(points, width) if math.isfinite(point.loss))
    return "".join(BLOCKS[round(min(1.0, max(0.0, share)) * (len(BLOCKS) - 1))] for share in shares)


def thin(points: Sequence[LossPoint], most: int) -> list[LossPoint]:
    """Return at most ``most`` points, each the mean of neighbours."""
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        LossPoint(step=group[-1].step, loss=math.fsum(point.loss for point in group) / len(group)) for group in groups
    ]
