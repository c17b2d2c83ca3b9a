"""Runs side by side: one line for each thing that can be compared, one cell for each run.

The best value of a line is marked where one is better than another: lower forgetting, higher gain. What a run was
given (its settings, the score before the training) is neither good nor bad, what was not measured is left empty, and
numbers that come from other tasks, documents or rows are not ranked.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from osft.comparison.compared_run import ComparedRun
from osft.evaluation.config import HOLDOUT_TASK
from osft.evaluation.forgetting import Kind, TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    DASH,
    format_change,
    format_interval,
    format_number,
    format_score,
    format_share,
    plain_values,
)
from osft.evaluation.report.points import format_points

Better = Literal["higher", "lower"] | None

OUTCOMES: dict[str, Better] = {
    "passed": "higher",
    "forgetting": "lower",
    "forgetting_upper": "lower",
    "cumulative_forgetting": "lower",
    "cumulative_forgetting_upper": "lower",
    "origin_forgetting": "lower",
    "target_gain": "higher",
    "backward_transfer": "higher",
    "average_accuracy": "higher",
    "probe.kl": "lower",
    "probe.perplexity_tuned": "lower",
    "train_final_loss": "lower",
    "train_seconds": "lower",
}
"""Metrics of a whole run in the order in which they are shown, and which way is better."""

SIGNED_POINTS = ("target_gain", "backward_transfer")
POINTS = (
    "forgetting", "forgetting_upper", "cumulative_forgetting", "cumulative_forgetting_upper", "origin_forgetting",
)  # fmt: skip
HOLDOUT_METRICS = f"target.{HOLDOUT_TASK}"
OF_RETENTION = (*POINTS, "backward_transfer", "average_accuracy")
"""Metrics that are taken over the retention tasks."""

OF_TARGETS = ("target_gain", "average_accuracy")
"""Metrics that are taken over the target tasks, the held-out rows among them."""

OF_TRAINED_ROWS = ("train_final_loss", "train_seconds")
OF_PROBE = ("probe.kl", "probe.perplexity_tuned")
DATA_NAMES = ("uri", "revision", "sha256", "rows", "rows_valid", "rows_quarantined", "rows_train", "rows_holdout")
DIGEST_CHARACTERS = 12
"""Of a sha256: enough to tell contents apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one run has in a line."""

    text: str
    is_best: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One thing that is compared; one cell a run, in the order of the runs."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Lines that belong together."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that is shown of the runs."""

    runs: tuple[ComparedRun, ...]
    sections: tuple[Section, ...]

    same_settings: dict[str, str]
    """Settings that all runs share."""


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    """Return the runs side by side, what differs first."""
    settings = {
        name: [run.parameters[name] for run in runs if name in run.parameters]
        for name in _names(run.parameters for run in runs)
    }
    # A run that was stopped before a step says nothing about the step's settings.
    same = {name: values[0] for name, values in settings.items() if all(value == values[0] for value in values)}
    differing = [name for name in settings if name not in same]
    sections = (
        Section(title="run", lines=_run_lines(runs)),
        Section(
            title="settings that differ",
            lines=tuple(_line(name, (_plain(run.parameters.get(name)) for run in runs)) for name in differing),
        ),
        Section(title="data", lines=_data_lines(runs)),
        Section(title="outcome", lines=_outcome_lines(runs)),
        *_task_sections(runs),
    )
    return Comparison(
        runs=tuple(runs),
        sections=tuple(section for section in sections if section.lines),
        same_settings={name: _plain(value) for name, value in same.items()},
    )


def _names(mappings: Iterable[Any]) -> list[str]:
    """Return the keys of all mappings, each once, in the order in which they first come."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _run_lines(runs: Sequence[ComparedRun]) -> tuple[Line, ...]:
    lines = [
        _line("first step ended", (_time(run.began_at) for run in runs)),
        _line("last step ended", (_time(run.ended_at) for run in runs)),
        _line("finished", map(_how_far, runs)),
    ]
    if any(run.starts_from for run in runs):
        lines.append(_line("starts from", (run.starts_from or "" for run in runs)))
    return tuple(lines)


def _time(moment: str) -> str:
    return moment.replace("T", " ").removesuffix("+00:00")


def _how_far(run: ComparedRun) -> str:
    if run.has_nothing_new:
        return "nothing new to learn"
    return f"no, {run.missing_step} is missing" if run.missing_step else "yes"


def _data_lines(runs: Sequence[ComparedRun]) -> tuple[Line, ...]:
    lines = []
    for name in _names(run.data for run in runs):
        # The hash of the rows tells that they differ where the address is the same; its head is enough.
        short = DIGEST_CHARACTERS if name == "sha256" else None
        lines.append(_line(name, (_plain(run.data.get(name))[:short] for run in runs)))
    return tuple(lines)


def _outcome_lines(runs: Sequence[ComparedRun]) -> tuple[Line, ...]:
    lines = []
    unranked = _unranked(runs)
    for name, direction in OUTCOMES.items():
        better = None if name in unranked else direction
        values = [run.metrics.get(name) for run in runs]
        if any(value is not None for value in values):
            lines.append(_measured(name, values, [_outcome_text(name, value) for value in values], better))
    return tuple(lines)


def _unranked(runs: Sequence[ComparedRun]) -> set[str]:
    """Return the metrics of which none is the best, because the runs' numbers are of different things."""
    reports = [run.report for run in runs if run.report]
    differs = {
        OF_RETENTION: len({_questions(report, "retention") for report in reports}) > 1,
        OF_TARGETS: len({_questions(report, "target") for report in reports}) > 1 or not _have_same_holdout(runs),
        OF_PROBE: len({(one.probe.documents, one.probe.tokens) for one in reports if one.probe}) > 1,
        OF_TRAINED_ROWS: len({run.train_sha256 for run in runs if run.train_sha256}) > 1,
    }
    return {name for names, is_so in differs.items() if is_so for name in names}


def _questions(report: ForgettingReport, kind: Kind) -> frozenset[tuple[str, str, int]]:
    """Return name, metric and number of documents of the tasks of this kind."""
    return frozenset((task.task, task.metric, task.n) for task in report.tasks if task.kind == kind)


def _outcome_text(name: str, value: float | None) -> str:
    if value is None:
        return DASH
    if name == "passed":
        return "yes" if value else "no"
    if name == "average_accuracy":
        return format_share(value)
    if name in POINTS or name in SIGNED_POINTS:
        return format_points(value, signed=name in SIGNED_POINTS)
    return format_number(value)


def _task_sections(runs: Sequence[ComparedRun]) -> tuple[Section, ...]:
    """Return a section for each task that any run was asked, under the names of its metrics."""
    by_run = [{f"{task.kind}.{task.task}": task for task in run.report.tasks} if run.report else {} for run in runs]
    names = _names(by_run)
    ordered = sorted(names, key=lambda name: name.startswith("target."))
    same_rows = _have_same_holdout(runs)
    return tuple(
        Section(
            title=name,
            lines=_task_lines(
                name, [tasks.get(name) for tasks in by_run], is_comparable=same_rows or name != HOLDOUT_METRICS
            )
            + _best_line(name, runs, [tasks.get(name) for tasks in by_run]),
        )
        for name in ordered
    )


def _task_lines(name: str, tasks: Sequence[TaskComparison | None], *, is_comparable: bool) -> tuple[Line, ...]:
    known = [task for task in tasks if task is not None]
    comparable = is_comparable and len({(task.metric, task.n) for task in known}) == 1
    after: Better = ("higher" if known[0].higher_is_better else "lower") if comparable else None
    change: Better = "higher" if comparable else None
    return (
        _measured(f"{name}.base", *_read(tasks, lambda task: (task.base, format_score(task, task.base))), None),
        _measured(f"{name}.tuned", *_read(tasks, lambda task: (task.tuned, format_score(task, task.tuned))), after),
        _measured(f"{name}.delta", *_read(tasks, lambda task: (task.delta, _change(task))), change),
    )


def _best_line(name: str, runs: Sequence[ComparedRun], tasks: Sequence[TaskComparison | None]) -> tuple[Line, ...]:
    """Return the score of the best version before each run, where any run had one."""
    values = [run.metrics.get(f"{name}.best") for run in runs]
    if all(value is None for value in values):
        return ()
    texts = [
        DASH if task is None or value is None else format_score(task, value)
        for task, value in zip(tasks, values, strict=True)
    ]
    return (_measured(f"{name}.best", values, texts, None),)


def _have_same_holdout(runs: Sequence[ComparedRun]) -> bool:
    """Return whether all runs that held rows out were asked about the same ones."""
    return len({run.holdout_sha256 for run in runs if run.holdout_sha256 is not None}) <= 1


def _read(
    tasks: Sequence[TaskComparison | None], read: Callable[[TaskComparison], tuple[float, str]]
) -> tuple[list[float | None], list[str]]:
    """Return a value of each task and its text; None and a dash for a run that was not asked it."""
    pairs = [(None, DASH) if task is None else read(task) for task in tasks]
    return [value for value, _ in pairs], [text for _, text in pairs]


def _change(task: TaskComparison) -> str:
    change, interval = format_change(task, task.delta), format_interval(task)
    return change if interval == DASH else f"{change} ({interval})"


def _measured(name: str, values: Sequence[float | None], texts: Sequence[str], better: Better) -> Line:
    """Return a line with its best cells marked; none is where all runs are alike or nothing is better."""
    known = [value for value in values if value is not None]
    best = None
    if better is not None and len(set(known)) > 1:
        best = max(known) if better == "higher" else min(known)
    cells = (
        Cell(text=text, is_best=best is not None and value == best) for value, text in zip(values, texts, strict=True)
    )
    return Line(name=name, cells=tuple(cells))


def _line(name: str, texts: Iterable[str]) -> Line:
    return Line(name=name, cells=tuple(Cell(text=text or DASH) for text in texts))


def _plain(value: Any) -> str:
    """Return a setting as text for people, an empty one for nothing."""
    shown = plain_values({"value": value}).get("value", "")
    return shown if isinstance(shown, str) else ", ".join(f"{name}: {text}" for name, text in shown.items())
