"""The runs of a sweep: one for each unfreeze ratio, with the steps that all of them share.

Each is a run as any other: comparisons, reports and prunings read its folder, which therefore holds what it starts
from and its rows. These are the sweep's, linked (:mod:`osft.sweep.linked_steps`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osft.errors import ConfigError
from osft.sweep.linked_steps import link_step
from osft.versions.runs import join_sweep
from osft.workspace import Manifest, Workspace

MIN_RATIOS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioRun:
    """The run that trains at one ratio."""

    run_id: str

    ratio: float
    """Share of each weight's singular directions that may move, above 0 and at most 1."""


def prepare_ratio_runs(
    workspace: Workspace, run_id: str, ratios: Sequence[Any], steps: Mapping[str, Manifest]
) -> list[RatioRun]:
    """Make the folder of each ratio's run, with the steps that the sweep has done already.

    Args:
        workspace: where the runs are.
        run_id: id of the sweep.
        ratios: as the user gave them.
        steps: manifest of each shared step, by the name of its folder.

    Returns:
        The runs, the smallest ratio first.

    Raises:
        ConfigError: if a ratio is none, is there twice, or there are fewer than two.
        WorkspaceError: if a step's files are not what it left, or an id cannot be a folder name.
    """
    runs = [RatioRun(run_id=f"{run_id}-ratio-{ratio}", ratio=ratio) for ratio in checked_ratios(ratios)]
    for run in runs:
        # First: from here on it is not pruned while its sweep is under way.
        join_sweep(workspace, run.run_id, run_id)
        for step, manifest in steps.items():
            link_step(workspace, manifest, run.run_id, step)
    return runs


def checked_ratios(ratios: Sequence[Any]) -> list[float]:
    """Return the ratios in ascending order.

    Raises:
        ConfigError: if one is no number above 0 and at most 1, is there twice, or there are fewer than two.
    """
    for place, ratio in enumerate(ratios):
        is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if not is_number or not math.isfinite(ratio) or not 0 < ratio <= 1:
            raise ConfigError(
                f"sweep_ratios[{place}] is {ratio!r}, which is no number above 0 and at most 1. "
                "Give shares of the directions that may move, e.g. [0.1, 0.25, 0.5]."
            )
        if ratio in ratios[:place]:
            raise ConfigError(f"sweep_ratios[{place}] is {ratio!r}, which is there twice. Give each ratio once.")
    if len(ratios) < MIN_RATIOS:
        raise ConfigError(
            f"sweep_ratios is {list(ratios)}, and a sweep compares two at least. Add one, or train at one ratio alone."
        )
    return sorted(float(ratio) for ratio in ratios)
