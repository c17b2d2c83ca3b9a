"""The ratios of a sweep as a table of text, the same in the page and in Markdown; the best of a column is marked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from osft.comparison.comparison import Cell
from osft.evaluation.report.formats import DASH
from osft.evaluation.report.points import format_points
from osft.sweep.choice import RatioChoice, RatioOutcome
from osft.sweep.gains import MeanChange


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioTable:
    """A row a ratio, in the order of the outcomes."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def ratio_table(choice: RatioChoice) -> RatioTable:
    """Return the table; a column is left out where no ratio has anything in it."""
    every = choice.outcomes
    gains = [one.gain.value if one.gain else None for one in every]
    columns = {
        "Ratio": [Cell(text=str(one.ratio)) for one in every],
        "Gain": _column(gains, [_gain_text(one.gain) for one in every], best=max),
        "Below the highest": _column(gains, [_behind_text(one) for one in every], best=None),
        "Forgetting": _lost([one.forgetting for one in every]),
        "At most": _lost([one.forgetting_upper for one in every]),
        "Since the best versions": _lost([one.cumulative_forgetting for one in every]),
        "At most, since then": _lost([one.cumulative_forgetting_upper for one in every]),
        "Training (h:mm:ss)": [Cell(text=str(timedelta(seconds=round(one.train_seconds)))) for one in every],
        "Gate": [Cell(text="passed" if one.passed else "not passed") for one in every],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell.text != DASH for cell in cells)}
    return RatioTable(columns=tuple(shown), rows=tuple(zip(*shown.values(), strict=True)))


def _lost(values: Sequence[float | None]) -> list[Cell]:
    return _column(values, [DASH if value is None else format_points(value) for value in values], best=min)


def _column(
    values: Sequence[float | None], texts: Sequence[str], *, best: Callable[[list[float]], float] | None
) -> list[Cell]:
    """Return the cells of a column; none is the best where all are alike."""
    known = [value for value in values if value is not None]
    mark = best(known) if best and len(set(known)) > 1 else None
    return [
        Cell(text=text, is_best=mark is not None and value == mark) for value, text in zip(values, texts, strict=True)
    ]


def _gain_text(gain: MeanChange | None) -> str:
    return DASH if gain is None else f"{format_points(gain.value, signed=True)}{_interval_text(gain)}"


def _behind_text(one: RatioOutcome) -> str:
    if one.gain is None or one.behind is None:
        return DASH
    return f"{format_points(one.behind.value)}{_interval_text(one.behind)}"


def _interval_text(change: MeanChange) -> str:
    if change.low is None or change.high is None:
        return ""
    return f" ({format_points(change.low, signed=True)} to {format_points(change.high, signed=True)})"
