"""Chains of versions to show, made of plain numbers: the folders are real, no model is in them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from osft.evaluation.ancestry import ORIGIN_VERSION
from osft.subspace.memory.memory import GroupMemory, SubspaceMemory
from osft.versions.folders import MEMORY_FOLDER, ORIGIN_FOLDER, version_name, versions_folder
from osft.versions.journal import Journal
from osft.versions.lineage import Lineage, TaskScore
from osft.workspace import MANIFEST_NAME, Manifest, Workspace

RETENTION = {"country_code": 1.0, "country_capital": 0.972}
LEARNT_SCORES = (0.0, 1.0, 0.93, 0.9, 0.84, 0.8, 0.79, 0.77, 0.75, 0.74, 0.73)
"""Of one domain: before it was learnt, then after it and after each later training."""


def make_score(task: str, after: float, *, before: float | None = None, **fields: Any) -> TaskScore:
    values: dict[str, Any] = {
        "kind": "retention", "metric": "acc", "higher_is_better": True, "documents": 100, "questions": "q",
    }  # fmt: skip
    return TaskScore(task=task, before=before, after=after, **values | fields)


def make_lineage(
    number: int,
    scores: Sequence[TaskScore],
    *,
    parent: str | Literal["before"] | None = "before",
    evaluation: Mapping[str, Any] | None = None,
    model_name: str = "demo",
) -> Lineage:
    """Return the lineage of version ``number``; its parent is the version before unless another one is given."""
    before = version_name(number - 1) if number > 1 else None
    return Lineage(
        model_name=model_name,
        version=version_name(number),
        parent=before if parent == "before" else parent,
        replaced=before,
        origin="org/base-model",
        origin_fingerprint="f" * 64,
        run_id=f"6f1c2b0e-0000-4000-8000-{number:012d}",
        promoted_at=f"2026-03-{number + 1:02d}T02:00:00+00:00",
        data={"uri": f"s3://bucket/domains/{number}.jsonl", "rows": 336, "rows_train": 300 + number},
        parameters={"training": {"unfreeze_rank_ratio": 0.25, "learning_rate": 1e-4}},
        file_hashes={},
        software={"torch": "2.13"},
        learned_task=f"holdout_{version_name(number)}" if number else None,
        scores=tuple(scores),
        evaluation=evaluation or _judged(number),
    )


def _judged(number: int) -> dict[str, float]:
    """Return what the evaluation of version ``number`` found; the first has no version before its parent."""
    found = {"forgetting": 0.012, "forgetting_upper": 0.031, "target_gain": 0.99}
    return found | ({"cumulative_forgetting": 0.039, "origin_forgetting": 0.024} if number > 1 else {})


def write_version(workspace: Workspace, lineage: Lineage, *, has_weights: bool = True) -> None:
    """Publish an empty version with this lineage, which becomes current."""
    folder = versions_folder(workspace, lineage.model_name) / lineage.version
    folder.mkdir(parents=True)
    lineage.save(folder)
    if has_weights:
        (folder / "model.safetensors").write_bytes(b"weights")
    Manifest(path=f"models/{lineage.model_name}/{lineage.version}", files=(), inputs={}).save(folder / MANIFEST_NAME)
    journal = Journal(workspace, lineage.model_name)
    journal.replace(journal.current(), lineage.version, reason="promotion", run_id=lineage.run_id)


def five_domains(versions: int = 5) -> list[Lineage]:
    """Return a chain that learnt a domain with each version and lost some of the earlier ones."""
    chain = [make_lineage(0, [make_score(task, score) for task, score in RETENTION.items()], parent=None)]
    for number in range(1, versions + 1):
        scores = [
            make_score(task, round(score - 0.012 * number, 3), before=round(score - 0.012 * (number - 1), 3))
            for task, score in RETENTION.items()
        ]
        scores += [
            make_score(
                f"holdout_{version_name(earlier)}",
                LEARNT_SCORES[number - earlier + 1],
                before=LEARNT_SCORES[number - earlier],
            )
            for earlier in range(1, number)
        ]
        learnt = f"holdout_{version_name(number)}"
        scores.append(make_score(learnt, LEARNT_SCORES[1], before=LEARNT_SCORES[0], kind="target", documents=25))
        chain.append(make_lineage(number, scores))
    return chain


def write_chain(workspace: Workspace, chain: Sequence[Lineage]) -> None:
    """Publish a chain, oldest first; the last one is current, and the first keeps the origin."""
    versions = [lineage for lineage in chain if lineage.version != ORIGIN_VERSION]
    for lineage in versions:
        write_version(workspace, lineage)
    for origin in (lineage for lineage in chain if lineage.version == ORIGIN_VERSION):
        folder = versions_folder(workspace, origin.model_name) / versions[0].version / ORIGIN_FOLDER
        folder.mkdir()
        origin.save(folder)


def write_memory(workspace: Workspace, version: str, needed: Mapping[tuple[str, ...], tuple[int, ...]]) -> None:
    """Give a version a memory of which each task needed so many of eight directions, by the weights that share them."""
    groups = tuple(
        GroupMemory(
            targets=targets,
            directions=torch.eye(8, history[-1], dtype=torch.bfloat16),
            eigenvalues=torch.full((history[-1],), 1.0 / history[-1]),
            residual=0.0,
            needed=history,
        )
        for targets, history in needed.items()
    )
    folder = versions_folder(workspace, "demo") / version / MEMORY_FOLDER
    SubspaceMemory(groups=groups, tasks=len(next(iter(needed.values()))), tokens=100).save(folder)
