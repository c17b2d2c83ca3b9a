"""Why a ratio was taken, in a sentence that the log, the pages and ``choice.json`` share."""

from collections.abc import Sequence

from osft.evaluation.report.points import format_points
from osft.sweep.measured_ratio import MeasuredRatio

CAVEAT = (
    "Each interval and bound is of its model alone. The best of several looks a little better than it is, its gain "
    "most of all: it was chosen for it, and chance had several tries."
)
"""What the choice does to the statistics."""

LEGEND = (
    "Gain is the mean over the target tasks, forgetting the mean loss over the retention tasks, both in points of 100. "
    "In brackets stand 95% intervals, and forgetting is at most the given bound with 95% confidence. A gain is as good "
    "as the highest if the interval of its distance below it includes 0."
)
"""What the columns of the table mean."""


def say_why(
    *,
    chosen: MeasuredRatio,
    highest: MeasuredRatio,
    equal: Sequence[MeasuredRatio],
    candidates: Sequence[MeasuredRatio],
    all_paired: bool,
) -> str:
    """Return why a ratio was taken.

    Args:
        chosen: the ratio that is taken.
        highest: the one with the highest gain.
        equal: those whose gain cannot be told from the highest, which is one of them.
        candidates: all that the choice was made from.
        all_paired: whether the answers of each of them could be paired with those of the highest.
    """
    reason = _reason(chosen, highest, len(equal), len(candidates), all_paired=all_paired)
    if chosen.report.passed:
        return f"Ratio {chosen.ratio} is taken: {reason}."
    return f"No model passed and none is promoted. Ratio {chosen.ratio} would be taken: {reason}."


def _reason(chosen: MeasuredRatio, highest: MeasuredRatio, equal: int, candidates: int, *, all_paired: bool) -> str:
    passed = " that passed" if chosen.report.passed else ""
    if candidates == 1 and passed:
        return "its model is the only one that passed"
    if highest.report.target_gain is None:
        return f"it forgot least of the {candidates}{passed}, and what they gained was not measured"
    gain = f"{format_points(highest.report.target_gain)} points"
    if not all_paired:
        return (
            f"its gain of {gain} is the highest measured of the {candidates}{passed}; not all answers could be paired, "
            "so chance is not ruled out"
        )
    if equal == 1:
        return f"its gain of {gain} is the highest of the {candidates}{passed}, and by more than chance"
    if chosen is highest:
        return f"its gain of {gain} is the highest, and of the {equal} that cannot be told from it, it forgot least"
    return f"it forgot least of the {equal} whose gain cannot be told from the highest, {gain} at ratio {highest.ratio}"
