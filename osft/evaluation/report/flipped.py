"""The documents that the training changed, as the page shows them.

All of them are in ``samples.jsonl``; the page shows the most changed of each task, few enough that it opens at once on
a phone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from osft.evaluation.pairing import DocumentPair
from osft.evaluation.report.formats import format_number

MAX_WORSE = 200
MAX_BETTER = 60
"""Documents on the page over all tasks."""

MAX_WORSE_PER_TASK = 20
MAX_BETTER_PER_TASK = 5
MIN_PER_TASK = 2
ROUNDING = 1e-4
"""A smaller change, as a share of the larger score, is how a device rounds and not what a model learnt."""

MAX_TEXT_CHARACTERS = 6_000
"""A longer text is cut: a prompt at its start, where its examples are, an answer at its end."""


def became_worse(documents: Sequence[DocumentPair]) -> list[dict[str, Any]]:
    """Return for each task the documents that became worse, worst first; the task that lost most documents first."""
    worse = [one for one in documents if one.change is not None and one.change < 0 and not _is_rounding(one)]
    return _groups(worse, per_task=MAX_WORSE_PER_TASK, in_all=MAX_WORSE)


def became_better(documents: Sequence[DocumentPair]) -> list[dict[str, Any]]:
    """Return for each task the documents that became better, best first; the task that gained most first."""
    better = [one for one in documents if one.change is not None and one.change > 0 and not _is_rounding(one)]
    return _groups(better, per_task=MAX_BETTER_PER_TASK, in_all=MAX_BETTER)


def unscored_tasks(documents: Iterable[DocumentPair]) -> list[str]:
    """Return the tasks whose documents have no score of their own, so that nobody knows which became worse."""
    return list(dict.fromkeys(one.task for one in documents if one.change is None))


def _is_rounding(document: DocumentPair) -> bool:
    """Return whether a change is next to nothing; one from right to wrong never is."""
    scores = (document.base_score or 0.0, document.tuned_score or 0.0)
    return abs(document.change or 0.0) <= ROUNDING * max(map(abs, scores))


def _groups(documents: Iterable[DocumentPair], *, per_task: int, in_all: int) -> list[dict[str, Any]]:
    by_task: dict[str, list[DocumentPair]] = {}
    for document in documents:
        by_task.setdefault(document.task, []).append(document)
    if not by_task:
        return []
    room = max(MIN_PER_TASK, min(per_task, in_all // len(by_task)))
    groups = []
    for task, its in sorted(by_task.items(), key=lambda item: -len(item[1])):
        its.sort(key=lambda one: (-abs(one.change or 0.0), one.doc_id))
        groups.append({"task": task, "count": len(its), "documents": [_shown(one) for one in its[:room]]})
    return groups


def _shown(document: DocumentPair) -> dict[str, Any]:
    texts = {name: _cut_end(getattr(document, name)) for name in ("gold", "base_answer", "tuned_answer")}
    return asdict(document) | texts | {"prompt": _cut_start(document.prompt), "scores": _scores(document)}


def _scores(document: DocumentPair) -> tuple[str, str] | None:
    """Return both scores where they say more than right and wrong."""
    if document.base_score is None or document.tuned_score is None:
        return None
    if {document.base_score, document.tuned_score} <= {0.0, 1.0}:
        return None
    return format_number(document.base_score), format_number(document.tuned_score)


def _cut_start(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else "…" + text[-MAX_TEXT_CHARACTERS:]


def _cut_end(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + "…"
