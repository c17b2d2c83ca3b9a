"""What the pages of the data steps share: their templates, distributions as SVG, text cut to fit.

The pages must show in the pipelines UI's sandboxed frame: one file, no script, nothing loaded from anywhere (their own
content security policy forbids it). Names, paths and messages come from the data and are untrusted; the template
engine escapes them. The same report gives the same bytes.
"""

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import PackageLoader
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from osft.pages import format_count, write_page

# Mid-grey, mid-blue and orange: legible on a white and on a black page.
AXIS_COLOR = "#8a8f98"
BAR_COLOR = "#3b82f6"
MARK_COLOR = "#d97706"
CHART_WIDTH_INCHES = 4.2
CHART_HEIGHT_INCHES = 2.1
# Fewer bars are not drawn wider than this many would be.
MIN_BARS = 5
# Of the highest bar: one row among a million must be seen, it may be the one that is too long.
MIN_BAR_SHARE = 0.012
MAX_TICKS = 7
# Room above the bars for the name of the mark.
HEADROOM = 1.18


def write_data_page(target: Path, template: str, **values: object) -> None:
    """Render ``template``, one of the data steps', with ``values`` and write the page to ``target``, atomically."""
    write_page(target, PackageLoader("osft.data"), template, filters={"count": format_count, "cut": cut}, values=values)


def format_share(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in percent; a part that is neither none nor all is never shown as one."""
    if part in (0, whole):
        return "100%" if part else "0%"
    percent = 100 * part / whole
    if percent < 0.1:
        return "under 0.1%"
    return "over 99.9%" if percent > 99.9 else f"{percent:.1f}%"


def plural(number: int, noun: str) -> str:
    """Return ``number`` and ``noun``, which takes an s unless there is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cut(text: str, max_characters: int) -> str:
    """Return ``text``, shortened to ``max_characters`` with an ellipsis if it is longer."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def draw_histogram(
    counts: Mapping[str, int],
    *,
    title: str,
    unit: str,
    mark: tuple[int, str] | None = None,
    width_inches: float = CHART_WIDTH_INCHES,
) -> Markup:
    """Draw counts over sizes.

    Args:
        counts: upper bound, a power of two, as text -> how many are above half of it and not above it.
        title: what a screen reader says.
        unit: what the sizes are, under the axis.
        mark: a size to draw a line at, and what stands beside the line.
        width_inches: the page scales the chart; a wider one has smaller letters.
    """
    # On a scale of powers of two every bar is one wide and ends at its bound.
    ends = {_log2(int(bound)): count for bound, count in counts.items()}
    figure, axes = _open_chart(width_inches)
    axes.bar([end - 0.5 for end in ends], _heights(ends.values()), width=0.92, color=BAR_COLOR)
    first, last = math.floor(min(ends)) - 1, math.ceil(max(ends))
    if mark is not None:
        place = _log2(mark[0])
        first, last = min(first, math.floor(place)), max(last, math.ceil(place))
        _draw_mark(axes, place, mark[1], is_right=place > (first + last) / 2)
        axes.set_ylim(0, max(1, *ends.values()) * HEADROOM)
    step = max(1, math.ceil((last - first) / (MAX_TICKS - 1)))
    ticks = range(first, last + 1, step)
    axes.set_xticks(list(ticks), [_size(exponent, unit) for exponent in ticks])
    margin = max(0.2, (MIN_BARS - last + first) / 2)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel(unit, color=AXIS_COLOR, fontsize=8)
    return _close_chart(figure, title)


def draw_numbers(counts: Mapping[str, int], *, title: str, unit: str) -> Markup:
    """Draw counts over whole numbers, such as rows over their number of turns.

    Many different numbers are put together by powers of two.

    Args:
        counts: the number, as text -> how many have it.
        title: what a screen reader says.
        unit: what is counted, under the axis.
    """
    numbers = {int(number): count for number, count in counts.items()}
    if max(numbers) - min(numbers) >= 3 * MAX_TICKS:
        by_bound: dict[str, int] = {}
        for number, count in sorted(numbers.items()):
            bound = str(1 << max(number - 1, 0).bit_length())
            by_bound[bound] = by_bound.get(bound, 0) + count
        return draw_histogram(by_bound, title=title, unit=unit)
    figure, axes = _open_chart(CHART_WIDTH_INCHES)
    axes.bar(list(numbers), _heights(numbers.values()), width=0.8, color=BAR_COLOR)
    step = max(1, math.ceil((max(numbers) - min(numbers) + 1) / MAX_TICKS))
    axes.set_xticks(list(range(min(numbers), max(numbers) + 1, step)))
    margin = max(0.7, (MIN_BARS - max(numbers) + min(numbers)) / 2)
    axes.set_xlim(min(numbers) - margin, max(numbers) + margin)
    axes.set_xlabel(unit, color=AXIS_COLOR, fontsize=8)
    return _close_chart(figure, title)


def _heights(counts: Iterable[int]) -> list[float]:
    """Return the counts, those that would not be seen raised to what is."""
    values = list(counts)
    return [max(count, MIN_BAR_SHARE * max(values)) if count else 0.0 for count in values]


def _draw_mark(axes: Axes, place: float, name: str, *, is_right: bool) -> None:
    """Draw a line at ``place`` and its name on the side where there is room."""
    axes.axvline(place, color=MARK_COLOR, lw=1.4)
    axes.annotate(
        name,
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_right else 4, -10),
        textcoords="offset points",
        ha="right" if is_right else "left",
        color=MARK_COLOR,
        fontsize=8,
    )


def _log2(size: int) -> float:
    # An upper bound of 0 stands left of the one of 1.
    return math.log2(size) if size > 0 else -1.0


def _size(exponent: int, unit: str) -> str:
    """Return a power of two as people write it under an axis."""
    if exponent < 0:
        return "0"
    # 2 ** 10 is written 1k, as in the names of context lengths.
    size, prefix = 1 << exponent % 10, ("", "k", "M", "G", "T", "P", "E")[exponent // 10]
    if unit != "bytes":
        return f"{size}{prefix}"
    return f"{size} {prefix.upper()}iB" if prefix else f"{size} B"


def _open_chart(width_inches: float) -> tuple[Figure, Axes]:
    """Return axes without a background, in colours for dark and light pages."""
    figure = Figure(figsize=(width_inches, CHART_HEIGHT_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.tick_params(colors=AXIS_COLOR, labelsize=8, length=2)
    axes.spines[:].set_color(AXIS_COLOR)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color=AXIS_COLOR, alpha=0.25, lw=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _close_chart(figure: Figure, title: str) -> Markup:
    """Return the chart as an SVG element, with equal bytes for equal charts."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Ids come from a fixed salt, not from a random one; text stays text, which is a tenth of its outlines.
    with rc_context({"svg.hashsalt": "osft", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    element = svg[svg.index("<svg") + len("<svg") :]
    return Markup(f'<svg role="img" aria-label="{escape(title)}"{element}')  # noqa: S704 - the title is escaped
