"""Reports to draw, made of plain numbers: what they say need not be true, only varied."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from osft.evaluation.cumulative import BestComparison
from osft.evaluation.forgetting import Pool, SecondaryMetric, TaskComparison
from osft.evaluation.pairing import DocumentPair
from osft.evaluation.probe import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport

TASK_DEFAULTS: dict[str, Any] = {
    "task": "capitals[eu]",
    "kind": "retention",
    "metric": "acc",
    "base": 1.0,
    "tuned": 0.97,
    "delta": -0.03,
    "ci_low": -0.072,
    "ci_high": 0.013,
    "loss_upper": 0.065,
    "p_value": 0.25,
    "p_adjusted": 0.5,
    "n": 100,
    "lost": 3,
    "gained": 0,
}
PROSE: dict[str, Any] = {
    "task": "prose",
    "metric": "perplexity",
    "higher_is_better": False,
    "base": 12.0,
    "tuned": 12.0,
    "delta": 0.0,
    "n": 5,
    **dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted", "lost", "gained")),
}
ELEMENTS: dict[str, Any] = {
    "task": "elements",
    "kind": "target",
    "base": 0.0,
    "tuned": 1.0,
    "delta": 1.0,
    "ci_low": 0.95,
    "ci_high": 1.0,
    "p_value": 1e-9,
    "p_adjusted": 2e-9,
    "lost": 0,
    "gained": 100,
    "secondary": (SecondaryMetric(metric="f1", base=0.125, tuned=1.0),),
}


@pytest.fixture(scope="session")
def make_task() -> Callable[..., TaskComparison]:
    def make(**fields: Any) -> TaskComparison:
        values = TASK_DEFAULTS | fields
        return TaskComparison(**{"asked_as": values["task"]} | values)

    return make


@pytest.fixture(scope="session")
def make_report(make_task: Callable[..., TaskComparison]) -> Callable[..., ForgettingReport]:
    def make(**fields: Any) -> ForgettingReport:
        values: dict[str, Any] = {
            "base": "models/old",
            "tuned": "runs/new",
            "tasks": (make_task(), make_task(**PROSE), make_task(**ELEMENTS)),
            "forgetting": 0.015,
            "forgetting_upper": 0.0325,
            "unbounded_tasks": ("prose",),
            "target_gain": 1.0,
            "backward_transfer": -0.015,
            "average_accuracy_base": 0.5,
            "average_accuracy_tuned": 0.985,
            "probe": None,
            "passed": True,
            "reasons": ("Forgetting is 1.5 points, at most 3.3, within the limit of 5.0 points.",),
            "settings": {"max_forgetting": 0.05, "min_target_gain": 0.0, "seed": 20260, "task_limits": {}},
            "versions": {"lm-eval": "0.4.13"},
            "training": {"learning_rate": 5e-6, "num_epochs": 3, "unfreeze_rank_ratio": 0.25, "method": "osft"},
            "data": {"rows_train": 12345, "train": {"tokens": 1000000}},
        }
        return ForgettingReport(**values | fields)

    return make


@pytest.fixture(scope="session")
def chain_fields(make_task: Callable[..., TaskComparison]) -> dict[str, Any]:
    """What a report has in addition where the base has ancestors."""
    lost = make_task(base=1.0, tuned=0.9, delta=-0.1, ci_low=-0.15, ci_high=-0.04, p_adjusted=None, lost=10)
    kept = make_task(task="holdout_v0002", base=0.96, tuned=0.96, delta=0.0, ci_low=-0.04, ci_high=0.04, n=50)
    versions = ("origin", "v0001", "v0002")
    return {
        "cumulative_forgetting": 0.05,
        "cumulative_forgetting_upper": 0.0875,
        "best_tasks": (
            BestComparison(version="v0001", compared_with=versions, comparison=lost),
            BestComparison(version="v0002", compared_with=("v0002",), comparison=kept),
        ),
        "origin_forgetting": 0.08,
        "origin_forgetting_upper": 0.1225,
        "origin_tasks": (lost,),
        "left_out_references": ("prose is not compared with v0001: prose had 4 documents then, and has 5 now.",),
        "settings": {"max_forgetting": 0.05, "max_cumulative_forgetting": 0.1, "min_target_gain": 0.0},
    }


@pytest.fixture(scope="session")
def pool_fields(make_task: Callable[..., TaskComparison], chain_fields: dict[str, Any]) -> dict[str, Any]:
    """What a report has where earlier versions held out rows: enough accuracies, and too few perplexities."""
    names = ("holdout_v0001", "holdout_v0002")
    sets = [make_task(task=name, base=0.96, tuned=0.96, delta=0.0, n=50, lost=1, gained=1) for name in names]
    together = make_task(task="earlier_holdouts_acc", base=0.96, tuned=0.96, delta=0.0, p_adjusted=None, n=100)
    prose = PROSE | {"task": "holdout_v0003"}
    few = make_task(**PROSE | {"task": "earlier_holdouts_perplexity"})
    pools = (Pool(tasks=names, comparison=together), Pool(tasks=("holdout_v0003",), comparison=few))
    lost = replace(together, base=0.98, delta=-0.02, lost=2)
    best = [
        BestComparison(version="v0002", compared_with=("v0001", "v0002"), comparison=task)
        for task in (make_task(), *sets)
    ]
    return chain_fields | {
        "tasks": (make_task(), *sets, make_task(**prose), make_task(**ELEMENTS)),
        "unbounded_tasks": (),
        "pools": pools,
        "best_tasks": tuple(best),
        "best_pools": (Pool(tasks=names, comparison=lost),),
        "origin_tasks": (make_task(), *sets),
        "origin_pools": (Pool(tasks=names, comparison=lost),),
    }


@pytest.fixture(scope="session")
def make_document() -> Callable[..., DocumentPair]:
    def make(doc_id: int, *, change: float | None = -1.0, **fields: Any) -> DocumentPair:
        values: dict[str, Any] = {
            "task": "capitals[eu]",
            "base_score": 1.0 if change is not None and change < 0 else 0.0,
            "tuned_score": 0.0 if change is not None and change < 0 else 1.0,
            "prompt": "question",
            "gold": "right",
            "base_answer": "right",
            "tuned_answer": "wrong",
        }
        return DocumentPair(doc_id=doc_id, change=change, **values | fields)

    return make


@pytest.fixture(scope="session")
def make_probe() -> Callable[..., ProbeComparison]:
    def make(**fields: Any) -> ProbeComparison:
        values = {"documents": 3, "tokens": 90, "base_perplexity": 9.0, "tuned_perplexity": 9.5, "kl": 0.1}
        return ProbeComparison(**values | {"kl_low": 0.08, "kl_high": 0.13, "agreement": 0.9} | fields)

    return make
