"""The trade-off of a sweep in one picture: gain over forgetting, a mark for each ratio, a line through them in order.

A whisker goes to the bound of the forgetting, which is what the gate looks at, and over the gain's interval. What lies
far from all others would press them into a corner: it is held at the edge, with its number beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from osft.evaluation.report.points import MINUS, format_points
from osft.svg import svg_element
from osft.sweep.choice import RatioChoice, RatioOutcome

CHART_INCHES = (4.9, 3.5)
AXIS_COLOR = "#625e58"
PASSED_COLOR = "#1d7a5f"
FAILED_COLOR = "#b5472b"
PAPER_COLOR = "#fbfaf8"
MARK_POINTS = 7.5
CHOSEN_POINTS = 14.0
"""Diameters, in typographic points."""

CHARACTER_POINTS, LABEL_POINTS, LABEL_GAP = 6.0, 12.0, 7.0
"""About the width of a label's character and the height of its line; and how far it stands from its mark."""

FAR = 4.0
"""Marks are far from the others if without them an axis would be shorter by this factor."""

MIN_MARKS = 2
"""That are never held at an edge, and never fewer than half of all."""

ROOM = 0.07
"""Of an axis, left free at both ends."""

LIMIT_REACH = 3.0
"""The limit is drawn if the picture need not become wider than this for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """From where to where something goes on one axis, in points of 100."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of an axis of this reach, which has some room beyond it."""
        room = ROOM * (self.high - self.low)
        return self.low - room, self.high + room

    def holds(self, value: float) -> bool:
        """Return whether a value is within."""
        return self.low <= value <= self.high

    def share(self, value: float) -> float:
        """Return where on an axis of this reach a value lies: 0 to 1."""
        low, high = self.ends
        return (value - low) / (high - low)

    def place(self, value: float) -> float:
        """Return where a value is drawn on an axis of this reach: what is beyond it, at the axis' end."""
        low, high = self.ends
        return value if self.holds(value) else low if value < self.low else high


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One ratio in the picture."""

    ratio: float
    is_chosen: bool
    passed: bool
    forgetting: Reach
    gain: Reach


def draw_trade_off(choice: RatioChoice) -> Markup | None:
    """Return the picture as an SVG element; None if no gain was measured."""
    marks = [mark for one in choice.outcomes if (mark := _mark(choice, one))]
    if not marks:
        return None
    limit = 100 * choice.max_forgetting
    across, up = axis_reach([mark.forgetting for mark in marks]), axis_reach([mark.gain for mark in marks])
    across = replace(across, low=0.0, high=max(across.high, limit if limit <= LIMIT_REACH * across.high else 0.0))
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = figure.subplots()
    _draw_frame(axes, across, up, limit)
    places = [(across.place(mark.forgetting.value), up.place(mark.gain.value)) for mark in marks]
    axes.plot(*zip(*places, strict=True), color=AXIS_COLOR, lw=0.8, alpha=0.45, zorder=1)
    for mark, place in zip(marks, places, strict=True):
        _draw_mark(axes, mark, place)
    _draw_labels(axes, marks, across, up)
    return svg_element(
        figure, title=f"Gain over forgetting at the ratios {', '.join(str(mark.ratio) for mark in marks)}"
    )


def axis_reach(reaches: Sequence[Reach]) -> Reach:
    """Return what an axis shows: all that is not far from the others, with its whiskers; never nothing.

    Args:
        reaches: of the marks, at least one.
    """
    middle = median(one.value for one in reaches)
    nearest = sorted(reaches, key=lambda one: abs(one.value - middle))
    whole = _joined(nearest)
    for number in range(len(nearest) - 1, max(MIN_MARKS, math.ceil(len(nearest) / 2)) - 1, -1):
        near = _joined(nearest[:number])
        if whole.high - whole.low > FAR * (near.high - near.low):
            return near
    return whole


def _joined(reaches: Sequence[Reach]) -> Reach:
    """Return the reach over all, of a point at least."""
    low, high = min(one.low for one in reaches), max(one.high for one in reaches)
    return Reach(value=reaches[0].value, low=low, high=max(high, low + 1))


def _mark(choice: RatioChoice, one: RatioOutcome) -> Mark | None:
    if one.gain is None:
        return None
    gain, lost = one.gain, one.forgetting
    return Mark(
        ratio=one.ratio,
        is_chosen=one.ratio == choice.ratio,
        passed=one.passed,
        forgetting=_in_points(lost, low=lost, high=one.forgetting_upper),
        gain=_in_points(gain.value, low=gain.low, high=gain.high),
    )


def _in_points(value: float, *, low: float | None, high: float | None) -> Reach:
    """Return shares in points of 100; what is not known ends where the value is."""
    return Reach(
        value=100 * value, low=100 * (value if low is None else low), high=100 * (value if high is None else high)
    )


def _draw_frame(axes: Axes, across: Reach, up: Reach, limit: float) -> None:
    axes.patch.set_visible(False)
    axes.set_xlim(*across.ends)
    axes.set_ylim(*up.ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", MINUS)))
    if across.holds(limit):
        axes.axvline(limit, color=FAILED_COLOR, lw=1, ls=(0, (4, 3)), zorder=0)
        axes.annotate(
            "limit", (limit, 1), xycoords=("data", "axes fraction"), xytext=(-3, -2), textcoords="offset points",
            ha="right", va="top", color=FAILED_COLOR, fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("forgetting, up to its 95% bound (points)", color=AXIS_COLOR, fontsize=9)
    axes.set_ylabel("target gain (points)", color=AXIS_COLOR, fontsize=9)
    axes.tick_params(colors=AXIS_COLOR, labelsize=8, length=2)
    axes.spines[:].set_color(AXIS_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=AXIS_COLOR, alpha=0.15, lw=0.5)


def _draw_mark(axes: Axes, mark: Mark, place: tuple[float, float]) -> None:
    """Draw a mark with its whiskers: hollow if the model did not pass, with a ring around it if it is chosen."""
    color = PASSED_COLOR if mark.passed else FAILED_COLOR
    left, bottom = place
    axes.plot([left, max(left, mark.forgetting.high)], [bottom, bottom], color=color, lw=1.1, alpha=0.6, zorder=2)
    axes.plot([left, left], [mark.gain.low, mark.gain.high], color=color, lw=1.1, alpha=0.6, zorder=2)
    face = color if mark.passed else PAPER_COLOR
    axes.plot(*place, "o", ms=MARK_POINTS, mfc=face, mec=color, mew=1.4, zorder=4, clip_on=False)
    if mark.is_chosen:
        axes.plot(*place, "o", ms=CHOSEN_POINTS, mfc="none", mec=color, mew=1.4, zorder=3, clip_on=False)


def _draw_labels(axes: Axes, marks: Sequence[Mark], across: Reach, up: Reach) -> None:
    """Write each ratio beside its mark, between the whiskers; where labels would meet, one above the other."""
    width, height = (72 * inches for inches in CHART_INCHES)
    taken: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda mark: mark.gain.value):
        text = _label(mark, across, up)
        place = across.place(mark.forgetting.value), up.place(mark.gain.value)
        middle, bottom = width * across.share(place[0]), height * up.share(place[1]) + LABEL_GAP
        length = CHARACTER_POINTS * len(text)
        # To the right of the mark, unless it would leave the picture.
        aligned, start = ("left", middle) if middle + length < width else ("right", middle - length)
        while any(start < end and other < start + length and abs(bottom - y) < LABEL_POINTS for other, end, y in taken):
            bottom += 1
        taken.append((start, start + length, bottom))
        offset = (LABEL_GAP if aligned == "left" else -LABEL_GAP, bottom - height * up.share(place[1]))
        axes.annotate(
            text, place, xytext=offset, textcoords="offset points", ha=aligned, fontsize=9, zorder=5,
            fontweight="bold" if mark.is_chosen else "normal",
            bbox={"fc": PAPER_COLOR, "ec": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip


def _label(mark: Mark, across: Reach, up: Reach) -> str:
    """Return the ratio, with the number of what is held at the edge."""
    forgotten, gained = mark.forgetting.value, mark.gain.value
    parts = [str(mark.ratio)]
    if not across.holds(forgotten):
        parts.append(f"forgot {format_points(forgotten / 100)}")
    if not up.holds(gained):
        parts.append(f"gained {format_points(gained / 100)}")
    return ", ".join(parts)
