"""The chain of versions as one HTML page: the accuracy matrix as a heat map, each task over the versions, the table.

One file, no script, nothing loaded from anywhere: it shows in a sandboxed frame, and the same chain gives the same
bytes. Names come from users and from data; the template engine escapes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.evaluation.report.formats import DASH, format_share
from osft.pages import format_count, write_page
from osft.versions.accuracy_matrix import AccuracyMatrix, MatrixTask, TaskFigures
from osft.versions.chain_summary import ChainSummary
from osft.versions.memory_room import memory_size_text, room_text
from osft.versions.score_text import (
    COLD,
    WARM,
    Color,
    axis_text,
    color_of,
    ends,
    points_text,
    position,
    score_text,
)

TEMPLATE_NAME = "lineage.html.j2"


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
                "color": None if score is None else _rgb(color_of(matrix, task, score)),
                "is_learnt": version == task.learnt_by,
            }
            for task, score in zip(matrix.tasks, scores, strict=True)
        ],
    }


def _rgb(color: Color) -> str:
    return f"rgb({', '.join(map(str, color))})"


def _column(matrix: AccuracyMatrix, task: MatrixTask, figures: TaskFigures) -> dict[str, Any]:
    """Return a task with its chart: places in units of :data:`FRAME`."""
    worst, best = ends(matrix, task)
    points = list(_points(matrix, task))
    learnt = next((place for place, point in enumerate(points) if point["is_learnt"]), 0)
    last = score_text(matrix, task, figures.last)
    unit = "" if matrix.is_accuracy(task) else f" {task.metric}"
    return {
        "name": task.label,
        "forgetting": figures.forgetting,
        "transfer": figures.transfer,
        "note": f"{last}{unit}" if task.higher_is_better else f"{last}{unit}, lower is better",
        "label": f"{task.label}: {', '.join(point['title'] for point in points)}",
        "worst": axis_text(matrix, task, worst),
        "best": axis_text(matrix, task, best),
        "points": points,
        "before": _polyline(points[: learnt + 1]),
        "after": _polyline(points[learnt:]),
    }


def _points(matrix: AccuracyMatrix, task: MatrixTask) -> Iterator[dict[str, Any]]:
    step = (FRAME.right - FRAME.left) / max(1, len(matrix.versions) - 1)
    for place, (version, score) in enumerate(zip(matrix.versions, matrix.column(task), strict=True)):
        if score is not None:
            height = position(matrix, task, score)
            yield {
                "x": round(FRAME.left + place * step, 1),
                "y": round(FRAME.bottom - height * (FRAME.bottom - FRAME.top), 1),
                "title": f"{version} {score_text(matrix, task, score)}",
                "is_learnt": version == task.learnt_by,
            }


def _polyline(points: Sequence[dict[str, Any]]) -> str:
    return " ".join(f"{point['x']},{point['y']}" for point in points)
