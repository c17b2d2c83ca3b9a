"""A sweep as flat numbers, for the Metrics artifact and the compare-runs pages of the pipelines' UIs."""

from osft.sweep.choice import RatioChoice, RatioOutcome


def choice_metrics(choice: RatioChoice) -> dict[str, float]:
    """Return the numbers of a sweep by name.

    ``ratio`` and, of the chosen model, ``passed`` (1.0 or 0.0), ``target_gain``, ``forgetting`` and
    ``forgetting_upper``; the last four also for every ratio, as ``ratio_0.25.target_gain``. What was not measured is
    missing.
    """
    metrics = {"ratio": choice.ratio} | _numbers(choice.chosen)
    for one in choice.outcomes:
        metrics |= {f"ratio_{one.ratio}.{name}": value for name, value in _numbers(one).items()}
    return metrics


def _numbers(one: RatioOutcome) -> dict[str, float]:
    numbers = {
        "passed": float(one.passed),
        "target_gain": one.gain.value if one.gain else None,
        "forgetting": one.forgetting,
        "forgetting_upper": one.forgetting_upper,
    }
    return {name: value for name, value in numbers.items() if value is not None}
