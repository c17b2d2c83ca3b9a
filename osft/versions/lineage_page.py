"""The chain of versions as one HTML page: the accuracy matrix as a heat map, each task over the versions, the table.

One file, no script, nothing loaded from anywhere: it shows in a sandboxed frame, and the same chain gives the same
bytes. Names come from users and from data; the template engine escapes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from osft.evaluation.report.formats import DASH, format_share
from osft.pages import format_count, write_page
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask, TaskFigures
from osft.versions.chain_summary import ChainSummary
from osft.versions.folders import ORIGIN_VERSION
from osft.versions.memory_room import memory_size_text, room_text
from osft.versions.score_text import axis_text, points_text, score_text, strength

TEMPLATE_NAME = "lineage.html.j2"
COLD, WARM = (244, 241, 234), (109, 193, 158)
"""Colours of the worst and of the best score; dark letters are legible on both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartFrame:
    """Where a task's little chart lies in its picture, in units of the picture; text is 11 of them high."""

    width: int = 260
    height: int = 112
    left: int = 44
    right: int = 250
    top: int = 12
    bottom: int = 88


FRAME = ChartFrame()


def write_lineage_page(summary: ChainSummary, path: Path) -> None:
    """Write the page to ``path``, atomically."""
    matrix = summary.matrix
    columns = [
        _column(matrix, task, figures) for task, figures in zip(matrix.tasks, summary.figures.tasks, strict=True)
    ]
    write_page(
        path,
        ChoiceLoader([PackageLoader("osft.versions"), PackageLoader("osft")]),
        TEMPLATE_NAME,
        filters={"count": format_count, "points": points_text, "share": _share},
        values={
            "summary": summary,
            "accuracy": _share(summary.figures.average_accuracy),
            "first": matrix.versions[0],
            "last": matrix.versions[-1],
            "columns": columns,
            "rows": [_row(summary, version) for version in matrix.versions],
            "chart": FRAME,
            "cold": _rgb(COLD),
            "warm": _rgb(WARM),
            "memory_size": memory_size_text(summary.memory) if summary.memory else "",
            "room": room_text(summary.memory.more_tasks) if summary.memory else "",
        },
    )


def _share(value: float | None) -> str:
    return DASH if value is None else format_share(value)


def _row(summary: ChainSummary, version: str) -> dict[str, Any]:
    matrix = summary.matrix
    scores = matrix.scores[matrix.versions.index(version)]
    return {
        "version": version,
        "is_origin": version == ORIGIN_VERSION,
        "is_current": version == summary.current,
        "cells": [
            {
                "text": score_text(matrix, task, score),
                "color": None if score is None else _color(strength(matrix, task, score)),
                "is_learnt": version in task.learnt_in,
            }
            for task, score in zip(matrix.tasks, scores, strict=True)
        ],
    }


def _color(share: float) -> str:
    return _rgb(tuple(round(cold + share * (warm - cold)) for cold, warm in zip(COLD, WARM, strict=True)))


def _rgb(color: Sequence[int]) -> str:
    return f"rgb({', '.join(map(str, color))})"


def _column(matrix: AccuracyMatrix, task: MatrixTask, figures: TaskFigures) -> dict[str, Any]:
    """Return a task with its chart: places in units of :data:`FRAME`."""
    worst, best = _ends(matrix, task)
    points = list(_points(matrix, task, worst, best))
    learnt = next((place for place, point in enumerate(points) if point["is_learnt"]), 0)
    last = score_text(matrix, task, figures.last)
    unit = "" if matrix.is_accuracy(task) else f" {task.metric}"
    return {
        "name": task.name,
        "forgetting": figures.forgetting,
        "transfer": figures.transfer,
        "note": f"{last}{unit}" if task.higher_is_better else f"{last}{unit}, lower is better",
        "label": f"{task.name}: {', '.join(point['title'] for point in points)}",
        "worst": axis_text(matrix, task, worst),
        "best": axis_text(matrix, task, best),
        "points": points,
        "before": _polyline(points[: learnt + 1]),
        "after": _polyline(points[learnt:]),
    }


def _ends(matrix: AccuracyMatrix, task: MatrixTask) -> tuple[float, float]:
    """Return the worst and the best end of a chart's axis: 0 and 1 for an accuracy, else what there is since learning.

    A perplexity before learning is so high that nothing else would be seen beside it.
    """
    if matrix.is_accuracy(task):
        return 0.0, 1.0
    column = matrix.column(task)
    first = matrix.versions.index(task.learnt_in[0]) if task.learnt_in else 0
    known = [score for score in column[first:] if score is not None] or [score for score in column if score is not None]
    low, high = min(known), max(known)
    return (low, high) if task.higher_is_better else (high, low)


def _points(matrix: AccuracyMatrix, task: MatrixTask, worst: float, best: float) -> Iterator[dict[str, Any]]:
    step = (FRAME.right - FRAME.left) / max(1, len(matrix.versions) - 1)
    for place, (version, score) in enumerate(zip(matrix.versions, matrix.column(task), strict=True)):
        if score is not None:
            # Scores that are all the same lie in the middle; one beyond an end is held there.
            height = min(1.0, max(0.0, (score - worst) / (best - worst))) if best != worst else 0.5
            yield {
                "x": round(FRAME.left + place * step, 1),
                "y": round(FRAME.bottom - height * (FRAME.bottom - FRAME.top), 1),
                "title": f"{version} {score_text(matrix, task, score)}",
                "is_learnt": version in task.learnt_in,
            }


def _polyline(points: Sequence[dict[str, Any]]) -> str:
    return " ".join(f"{point['x']},{point['y']}" for point in points)
