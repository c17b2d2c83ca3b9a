"""The loss of a run as a picture: one self-contained HTML file with an SVG inside, readable on dark and light."""

import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from osft.training.metrics import StepMetrics
from osft.workspace import atomic_file

# Mid-grey and mid-blue: both are legible on a white and on a black page.
AXIS_COLOR = "#8a8f98"
LOSS_COLOR = "#3b82f6"
LEARNING_RATE_COLOR = "#d97706"


def write_loss_chart(steps: Sequence[StepMetrics], target: Path) -> None:
    """Draw loss and learning rate over the steps and write the page to ``target``, atomically."""
    environment = Environment(loader=PackageLoader("osft.training"), autoescape=True)
    page = environment.get_template("loss.html.j2").render(svg=_draw(steps), first=steps[0], last=steps[-1])
    with atomic_file(target, "w") as file:
        file.write(page)


def _draw(steps: Sequence[StepMetrics]) -> str:
    """Return an SVG element without a background, 8 by 3.6 inches."""
    # Imported here: of all processes of a run one draws, and all would wait a second for it at their start.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    loss = figure.subplots()
    rate = loss.twinx()
    numbers = [metrics.step for metrics in steps]
    marker = "o" if len(steps) == 1 else None
    rate.plot(numbers, [metrics.learning_rate for metrics in steps], color=LEARNING_RATE_COLOR, lw=1, alpha=0.7)
    loss.plot(numbers, [metrics.loss for metrics in steps], color=LOSS_COLOR, lw=1.6, marker=marker)
    # The loss is what one looks at: it is drawn over the learning rate.
    loss.set_zorder(rate.get_zorder() + 1)
    loss.patch.set_visible(False)
    loss.set_xlabel("optimizer step", color=AXIS_COLOR)
    loss.set_ylabel("loss (nats a token)", color=LOSS_COLOR)
    rate.set_ylabel("learning rate", color=LEARNING_RATE_COLOR)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss, rate):
        axes.tick_params(colors=AXIS_COLOR)
        axes.yaxis.offsetText.set_color(AXIS_COLOR)
        axes.spines[:].set_color(AXIS_COLOR)
        axes.spines["top"].set_visible(False)
    loss.grid(color=AXIS_COLOR, alpha=0.25, lw=0.5)
    buffer = io.StringIO()
    # Without a date and with ids that are no random numbers, equal runs leave equal files.
    with rc_context({"svg.hashsalt": "loss"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
