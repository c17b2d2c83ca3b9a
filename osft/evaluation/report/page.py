"""The one HTML page of an evaluation that people read.

It must show in the pipelines UI's sandboxed frame: one file, no script, nothing loaded from anywhere (its own content
security policy forbids it). Prompts, answers and names are untrusted text; the template engine escapes them. The same
report gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import PackageLoader

from osft.evaluation.forgetting import counted_tasks
from osft.evaluation.pairing import DocumentPair
from osft.evaluation.report.flipped import became_better, became_worse, unscored_tasks
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.formats import (
    bound_phrase,
    format_number,
    format_share,
    in_order,
    missing_interval,
    name_some,
    plain_values,
    verdict_sentence,
)
from osft.evaluation.report.points import format_bound, format_points
from osft.evaluation.report.task_rows import best_rows, flip_totals, table_groups
from osft.pages import format_count, write_page

if TYPE_CHECKING:
    from osft.evaluation.probe import ProbeComparison

TEMPLATE_NAME = "page.html.j2"
GAUGE_ROOM = 1.15
"""The gauge reaches this much beyond the largest of its values."""


def write_html(report: ForgettingReport, documents: Sequence[DocumentPair], path: Path) -> None:
    """Write the page, atomically.

    Args:
        report: what was measured.
        documents: every document; those that changed most are shown.
        path: the file to write.
    """
    unscored = unscored_tasks(documents)
    write_page(
        path,
        PackageLoader("osft.evaluation.report", package_path=""),
        TEMPLATE_NAME,
        filters={"count": format_count, "in_order": in_order},
        values={
            "report": report,
            "verdict": verdict_sentence(report),
            "figures": _figures(report),
            "unbounded": name_some(report.unbounded_tasks),
            "too_few": name_some(report.too_few_documents),
            "groups": table_groups(report),
            "chain": _chain(report),
            "num_tasks": len(report.tasks),
            "lacks_interval": any(missing_interval(task) for task in report.tasks),
            "probe": None if report.probe is None else _probe(report.probe),
            "worse": became_worse(documents),
            "better": became_better(documents),
            "unscored": name_some(unscored),
            "some_scored": any(document.change is not None for document in documents),
            "training": plain_values(report.training),
            "data": plain_values(report.data),
            "settings": plain_values(report.settings),
            "versions": plain_values(report.versions),
        },
    )


def _figures(report: ForgettingReport) -> dict[str, Any]:
    """Return the large numbers as text."""
    limit = float(report.settings["max_forgetting"])
    accuracies = report.average_accuracy_base, report.average_accuracy_tuned
    return {
        "forgetting": format_points(report.forgetting),
        "bound": bound_phrase(report),
        "limit": format_points(limit),
        "gauge": _gauge(report.forgetting, report.forgetting_upper if report.has_bound else report.forgetting, limit),
        "gain": None if report.target_gain is None else format_points(report.target_gain, signed=True),
        "min_gain": format_points(float(report.settings["min_target_gain"])),
        "documents": format_count(sum(task.n for task in report.tasks)),
        "flips": flip_totals(report),
        "backward_transfer": format_points(report.backward_transfer, signed=True),
        "accuracy": [format_share(one) for one in accuracies if one is not None],
    }


def _chain(report: ForgettingReport) -> dict[str, Any] | None:
    """Return what was lost since the best versions and since the origin; None without a chain."""
    value, upper = report.cumulative_forgetting, report.cumulative_forgetting_upper
    if value is None or upper is None:
        return None
    limit = float(report.settings["max_cumulative_forgetting"])
    since_origin, origin_upper = report.origin_forgetting, report.origin_forgetting_upper
    return {
        "forgetting": format_points(value),
        "bound": format_bound(upper) if report.has_bound else "no bound",
        "limit": format_points(limit),
        "gauge": _gauge(value, upper if report.has_bound else value, limit),
        "origin": None if since_origin is None else format_points(since_origin),
        "origin_bound": format_bound(origin_upper) if origin_upper is not None and report.has_bound else "no bound",
        "origin_tasks": len(counted_tasks(report.origin_tasks, report.origin_pools)),
        "table": best_rows(report),
        "left_out": report.left_out_references,
    }


def _gauge(forgetting: float, upper: float, limit: float) -> dict[str, Any]:
    """Return the places of the value, its bound and the limit, in percent of the gauge, which ends at the score."""
    places = {name: min(share, 1.0) for name, share in (("value", forgetting), ("upper", upper), ("limit", limit))}
    scale = max(places.values()) * GAUGE_ROOM or 1.0
    return {name: round(100 * value / scale, 2) for name, value in places.items()} | {"is_over": upper > limit}


def _probe(probe: "ProbeComparison") -> dict[str, Any]:
    interval = None
    if probe.kl_low is not None and probe.kl_high is not None:
        interval = f"{format_number(probe.kl_low)} to {format_number(probe.kl_high)}"
    return {
        "documents": f"{format_count(probe.documents)} document{'' if probe.documents == 1 else 's'}",
        "tokens": format_count(probe.tokens),
        "base": format_number(probe.base_perplexity),
        "tuned": format_number(probe.tuned_perplexity),
        "kl": format_number(probe.kl),
        "interval": interval,
        "agreement": format_share(probe.agreement),
    }
