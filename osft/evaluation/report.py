"""The report of an evaluation: its JSON, and the one HTML page that people read.

The page must show in the pipelines UI's sandboxed frame: one file, no script, nothing loaded from anywhere (its
own content security policy forbids it). Prompts and answers are untrusted text and are escaped by the template
engine.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from osft.errors import EvaluationError
from osft.evaluation.forgetting import SecondaryMetric, TaskComparison
from osft.workspace import atomic_file, read_json, write_json

logger = logging.getLogger(__name__)

TEMPLATE_NAME = "report.html.j2"
MAX_DOCUMENTS_PER_TASK = 20
MAX_TEXT_CHARACTERS = 1_500
"""A longer text is cut in the page (samples.jsonl has it whole): a prompt at its start, an answer at its end."""

CHART_WIDTH = 240.0
"""Width of the interval chart in its own units; the page scales it."""

MIN_CHART_SHARE = 0.01
"""The chart's axis reaches at least this far, so that no change at all does not fill it."""

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentPair:
    """One document with both models' answers: a line of ``samples.jsonl``."""

    task: str
    doc_id: int
    base_score: float | None
    tuned_score: float | None

    change: float | None
    """Tuned less base score, positive is better; None where the task has no score a document."""

    prompt: str
    gold: str
    base_answer: str
    tuned_answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgettingReport:
    """What was measured and judged: the content of ``forgetting.json``."""

    tasks: tuple[TaskComparison, ...]
    forgetting: float
    target_gain: float | None
    """None if there was no target task."""

    passed: bool
    reasons: tuple[str, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "ForgettingReport":
        """Read a report back.

        Raises:
            EvaluationError: if there is no such file or it is no report.
        """
        try:
            content = read_json(Path(path))
            tasks = tuple(_task(fields) for fields in content.pop("tasks"))
            return cls(tasks=tasks, reasons=tuple(content.pop("reasons")), **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EvaluationError(f"{path}: no report of an evaluation ({error}). Run the evaluation again.") from error


def write_html(report: ForgettingReport, documents: Sequence[DocumentPair], path: Path) -> None:
    """Write the page, atomically.

    Args:
        report: what was measured.
        documents: every document, of which those that became worse are shown.
        path: the file to write.
    """
    environment = Environment(
        loader=PackageLoader("osft", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE_NAME).render(
        report=report,
        verdict=verdict_sentence(report),
        groups=_task_groups(report),
        losses=_losses(report, documents),
        forgetting=format_points(report.forgetting),
        max_forgetting=format_points(report.settings["max_forgetting"]),
        gain=None if report.target_gain is None else format_points(report.target_gain, signed=True),
        min_gain=format_points(report.settings["min_target_gain"]),
        num_documents=f"{sum(task.n for task in report.tasks):,}",
        settings=_flat(report.settings),
        versions=_flat(report.versions),
    )
    with atomic_file(path) as file:
        file.write(page.encode())


def verdict_sentence(report: ForgettingReport) -> str:
    """Return the outcome in one sentence."""
    lost = f"it forgot {format_points(report.forgetting)} points"
    if report.forgetting * 100 < 0.05:
        lost = "it forgot nothing measurable"
    if report.target_gain is None:
        gained = "what it gained was not measured"
    elif report.target_gain < 0:
        gained = f"lost {format_points(-report.target_gain)} points on the new data"
    else:
        gained = f"gained {format_points(report.target_gain)} on the new data"
    if report.passed:
        return f"The tuned model may replace the base: {lost} and {gained}."
    return f"The tuned model should not replace the base: {lost} and {gained}."


def format_score(task: TaskComparison, score: float) -> str:
    """Return a score as people write it: accuracies in percent, other metrics as they are."""
    return f"{100 * score:.1f}%" if _is_percentage(task) else _plain(score)


def format_change(task: TaskComparison, change: float) -> str:
    """Return a change with its sign, in points of a percentage or in the metric's unit."""
    if _is_percentage(task):
        return format_points(change, signed=True)
    return f"{change + 0.0:+.3g}".replace("-", MINUS)


def format_interval(task: TaskComparison) -> str:
    """Return the interval of the change, a dash if there is none."""
    if task.ci_low is None or task.ci_high is None:
        return "\N{EM DASH}"
    return f"{format_change(task, task.ci_low)} to {format_change(task, task.ci_high)}"


def format_points(share: float, *, signed: bool = False) -> str:
    """Return a share as points of 100; no sign before a zero."""
    points = round(100 * share, 1) + 0.0
    return (f"{points:+.1f}" if signed and points else f"{points:.1f}").replace("-", MINUS)


def _task(fields: dict[str, Any]) -> TaskComparison:
    secondary = tuple(SecondaryMetric(**one) for one in fields.pop("secondary"))
    return TaskComparison(**fields, secondary=secondary)


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS)


def _is_percentage(task: TaskComparison) -> bool:
    return not task.is_relative and min(task.base, task.tuned) >= 0


def _task_groups(report: ForgettingReport) -> list[dict[str, Any]]:
    """Return the table's rows: what was to be kept, then what was to be learnt, each on a scale of its own."""
    groups = []
    for kind, title in (("retention", "To be kept"), ("target", "To be learnt")):
        tasks = [task for task in report.tasks if task.kind == kind]
        if tasks:
            scale = max([abs(share) for task in tasks for share in _shares(task)] + [MIN_CHART_SHARE])
            axis = (format_points(-scale, signed=True), format_points(scale, signed=True))
            groups.append({"title": title, "axis": axis, "rows": [_table_row(task, scale) for task in tasks]})
    return groups


def _table_row(task: TaskComparison, scale: float) -> dict[str, Any]:
    return {
        "task": task.task,
        "metric": task.metric,
        "base": format_score(task, task.base),
        "tuned": format_score(task, task.tuned),
        "change": format_change(task, task.delta),
        "interval": format_interval(task),
        "tone": _tone(task),
        "n": f"{task.n:,}",
        "flips": None if task.lost is None else f"{task.lost} lost, {task.gained} gained",
        "lower_is_better": not task.higher_is_better,
        "secondary": [
            f"{one.metric} {_plain(one.base)} \N{RIGHTWARDS ARROW} {_plain(one.tuned)}" for one in task.secondary
        ],
        "chart": [round(_position(share, scale), 1) for share in _shares(task)],
    }


def _tone(task: TaskComparison) -> str:
    """Return whether the change is told apart from none: its interval leaves out zero."""
    if task.ci_low is not None and task.ci_low > 0:
        return "gain"
    return "loss" if task.ci_high is not None and task.ci_high < 0 else "even"


def _shares(task: TaskComparison) -> tuple[float, ...]:
    """Return change and interval as shares of the score, so that all tasks fit one axis."""
    unit = abs(task.base) if task.is_relative and task.base else 1.0
    values = (task.delta,) if task.ci_low is None or task.ci_high is None else (task.delta, task.ci_low, task.ci_high)
    return tuple(value / unit for value in values)


def _position(share: float, scale: float) -> float:
    """Return the place of a change on the chart's axis, which has zero in its middle."""
    margin = 8.0
    return CHART_WIDTH / 2 + share / scale * (CHART_WIDTH / 2 - margin)


def _losses(report: ForgettingReport, documents: Sequence[DocumentPair]) -> list[dict[str, Any]]:
    """Return for each task the documents that became worse, worst first."""
    tasks = list(dict.fromkeys(document.task for document in documents))
    losses = []
    for task in tasks:
        worse = [one for one in documents if one.task == task and one.change is not None and one.change < 0]
        worse.sort(key=lambda one: (one.change, one.doc_id))
        if worse:
            shown = [_shown(one) for one in worse[:MAX_DOCUMENTS_PER_TASK]]
            losses.append({"task": task, "count": len(worse), "documents": shown})
    return losses


def _shown(document: DocumentPair) -> dict[str, Any]:
    return asdict(document) | {
        "prompt": document.prompt
        if len(document.prompt) <= MAX_TEXT_CHARACTERS
        else "…" + document.prompt[-MAX_TEXT_CHARACTERS:],
        "gold": _cut(document.gold),
        "base_answer": _cut(document.base_answer),
        "tuned_answer": _cut(document.tuned_answer),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + "…"


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as text for people; what was not given is left out."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat[key] = ", ".join(f"{name}: {one}" for name, one in value.items())
        elif isinstance(value, list | tuple):
            flat[key] = ", ".join(str(one) for one in value)
        elif value is not None:
            flat[key] = str(value)
    return {key.replace("_", " "): value for key, value in flat.items() if value != ""}
