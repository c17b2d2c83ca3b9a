"""Which ratio of a sweep to take, and the file that keeps it.

The rule, over the models that passed their gate, or over all where none did:

1. The highest gain on the target tasks.
2. Chance may have made it so. Every model whose gain cannot be told from the highest (the paired 95% interval of the
   difference includes 0) is as good, and of these the one is taken that forgot least: by the bound of its forgetting,
   then by its value, then by the smaller ratio.
3. Where the answers of some candidate cannot be paired with those of the highest (its report is an older one), no
   difference is laid to chance: the highest gain is taken as it was measured.
4. Without a target task, the one that forgot least.

The choice changes what the numbers say. Each interval and bound is of its model alone, as if there were no other. The
best of several is flattered a little, since chance had several tries, and its gain most of all: it is chosen for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osft.errors import EvaluationError, WorkspaceError
from osft.sweep.gains import MeanChange, compare_gains, gain_of
from osft.sweep.measured_ratio import MeasuredRatio
from osft.sweep.sentences import say_why
from osft.workspace import read_json, write_json

CHOICE_SCHEMA = "osft.ratio-choice/v1"
CHOICE_NAME = "choice.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioOutcome:
    """What one ratio came to."""

    ratio: float
    run_id: str
    passed: bool
    reasons: tuple[str, ...]
    """The gate's sentences."""

    gain: MeanChange | None
    """Mean gain over the target tasks; None if there was none."""

    behind: MeanChange | None
    """How much more the highest gain is than this one; None of the highest itself, and without a target task."""

    forgetting: float
    forgetting_upper: float | None
    """One-sided 95% upper bound of :attr:`forgetting`; None where there is no bound to give."""

    cumulative_forgetting: float | None
    cumulative_forgetting_upper: float | None
    """The same against the best of all versions before; None where the base is the first of its chain."""

    train_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioChoice:
    """The ratio to take: the content of ``choice.json``."""

    ratio: float
    run_id: str
    """Run that trained at :attr:`ratio`."""

    passed: bool
    """Whether its model passed the gate; if not, none did."""

    why: str
    """In one sentence."""

    max_forgetting: float
    """The gate's limit of :attr:`RatioOutcome.forgetting_upper`."""

    outcomes: tuple[RatioOutcome, ...]
    """Every ratio, the smallest first."""

    schema: str = CHOICE_SCHEMA

    @property
    def chosen(self) -> RatioOutcome:
        """What the chosen ratio came to."""
        return next(one for one in self.outcomes if one.ratio == self.ratio)

    def save(self, folder: Path) -> None:
        """Write ``choice.json`` into ``folder``, atomically."""
        write_json(folder / CHOICE_NAME, self)

    @classmethod
    def load(cls, folder: Path) -> "RatioChoice":
        """Read it back.

        Raises:
            WorkspaceError: if there is none of this version.
        """
        path = folder / CHOICE_NAME
        try:
            content = read_json(path)
            if content["schema"] != CHOICE_SCHEMA:
                raise ValueError(f"schema '{content['schema']}' is not {CHOICE_SCHEMA}")
            outcomes = tuple(_outcome(fields) for fields in content.pop("outcomes"))
            return cls(outcomes=outcomes, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkspaceError(f"{path}: no choice of a ratio ({error}). Retry the sweep.") from error


def choose_ratio(measured: Sequence[MeasuredRatio]) -> RatioChoice:
    """Return the ratio to take by the rule that the module's docstring has.

    Args:
        measured: every ratio of the sweep, at least one.

    Raises:
        EvaluationError: if two models were not asked the same.
    """
    candidates = [one for one in measured if one.report.passed] or list(measured)
    highest = max(candidates, key=lambda one: (one.report.target_gain or 0.0, *(-part for part in _lost(one))))
    behind = {one.ratio: compare_gains(highest.answers, one.answers) for one in measured if one is not highest}
    rivals = [one for one in candidates if one is not highest]
    all_paired = all(_is_paired(behind[one.ratio]) for one in rivals)
    equal = [highest, *(one for one in rivals if all_paired and not _is_behind(behind[one.ratio]))]
    chosen = min(equal, key=_lost)
    outcomes = tuple(
        _describe(one, behind.get(one.ratio)) for one in sorted(measured, key=lambda measured: measured.ratio)
    )
    return RatioChoice(
        ratio=chosen.ratio,
        run_id=chosen.run.run_id,
        passed=chosen.report.passed,
        why=say_why(chosen=chosen, highest=highest, equal=equal, candidates=candidates, all_paired=all_paired),
        max_forgetting=float(chosen.report.settings["max_forgetting"]),
        outcomes=outcomes,
    )


def fail_unless_one_passed(choice: RatioChoice, page: Path) -> None:
    """Raise if no model passed; ``page`` is the file that tells more.

    Raises:
        EvaluationError: with the reasons of the best.
    """
    if not choice.passed:
        raise EvaluationError(f"{choice.why} {' '.join(choice.chosen.reasons)} The report is {page}.")


def _lost(one: MeasuredRatio) -> tuple[float, float, float]:
    """Return what is compared to find the model that forgot least."""
    return one.report.forgetting_upper, one.report.forgetting, one.ratio


def _is_paired(difference: MeanChange | None) -> bool:
    """Return whether nothing stands in the way of a comparison; without a target task there is nothing to compare."""
    return difference is None or difference.is_paired


def _is_behind(difference: MeanChange | None) -> bool:
    """Return whether a gain is lower than the highest by more than chance."""
    return difference is not None and difference.is_clear and difference.value > 0


def _describe(one: MeasuredRatio, behind: MeanChange | None) -> RatioOutcome:
    report = one.report
    return RatioOutcome(
        ratio=one.ratio,
        run_id=one.run.run_id,
        passed=report.passed,
        reasons=report.reasons,
        gain=gain_of(report),
        behind=behind,
        forgetting=report.forgetting,
        forgetting_upper=report.forgetting_upper if report.has_bound else None,
        cumulative_forgetting=report.cumulative_forgetting,
        cumulative_forgetting_upper=report.cumulative_forgetting_upper if report.has_bound else None,
        train_seconds=one.train_seconds,
    )


def _outcome(fields: dict[str, Any]) -> RatioOutcome:
    """Return an outcome from JSON."""
    gain, behind = _change(fields.pop("gain")), _change(fields.pop("behind"))
    return RatioOutcome(gain=gain, behind=behind, reasons=tuple(fields.pop("reasons")), **fields)


def _change(fields: dict[str, Any] | None) -> MeanChange | None:
    return None if fields is None else MeanChange(**fields)
