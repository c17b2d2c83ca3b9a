"""The steps that know of versions, called as functions: what a run starts from, its promotion, the pruning."""

from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.base_resolution import base_resolution
from components.model_promotion import model_promotion
from components.workspace_pruning import workspace_pruning
from osft.errors import ConfigError
from osft.versions.base_model import BaseModel
from osft.versions.journal import Journal
from osft.workspace import Manifest, Workspace
from tests.components.artifacts import artifact
from tests.versions.finished_runs import MODEL, ORIGIN, finish_run


def run_steps(workspace: Workspace, run_id: str, *, address: str = "") -> dict[str, Any]:
    """Resolve, train, promote; return the artifacts and the model that the run started from."""
    registry = {"registry_address": address, "registry_location": "", "registry_claim": "my-claim"}
    base = artifact(dsl.Artifact, workspace, f"{run_id}-base")
    outputs = base_resolution.python_func(
        run_id=run_id, model_base=f"promoted://{MODEL}", model_origin=ORIGIN, model_name=MODEL, base=base, **registry
    )
    training, evaluation = finish_run(workspace, run_id, memory=True)
    promoted = artifact(dsl.Model, workspace, f"{run_id}-promoted")
    model_promotion.python_func(
        run_id=run_id,
        model_name=MODEL,
        base=base,
        tuned=artifact(dsl.Model, workspace, f"{run_id}-tuned", training),
        evaluation=artifact(dsl.Artifact, workspace, f"{run_id}-evaluation", evaluation),
        promoted=promoted,
    )
    return {"model": outputs.model, "base": base, "promoted": promoted}


def test_a_run_starts_from_what_the_run_before_it_has_promoted(workspace: Workspace) -> None:
    first, second = run_steps(workspace, "run-a"), run_steps(workspace, "run-b")

    assert (first["model"], second["model"]) == (ORIGIN, "pvc://models/ours/v0001")
    assert second["base"].metadata == {
        "path": "runs/run-b/base", "model": "pvc://models/ours/v0001", "parent": "v0001", "origin": ORIGIN,
    }  # fmt: skip
    assert BaseModel.load(workspace.directory_of(second["base"].path)).parent == "v0001"
    assert second["promoted"].metadata == {"path": "models/ours/v0002", "run_id": "run-b"}
    assert Manifest.load(second["promoted"].path).path == "models/ours/v0002"
    assert Journal(workspace, MODEL).current() == "v0002"


def test_a_registry_that_cannot_be_used_ends_the_run_at_its_beginning(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="model registry 'registry:8080' is not an address. Give https://HOST"):
        run_steps(workspace, "run-a", address="registry:8080")

    assert not (workspace.root / "runs").exists()


def test_what_was_pruned_is_listed(workspace: Workspace) -> None:
    for run_id in ("run-a", "run-b", "run-c"):
        run_steps(workspace, run_id)
    metrics, summary = artifact(dsl.Metrics, workspace, "metrics"), artifact(dsl.Markdown, workspace, "summary")

    workspace_pruning.python_func(model_name=MODEL, keep_versions=1, keep_runs=2, metrics=metrics, summary=summary)

    text = Path(summary.path).read_text()
    assert "| models/ours/v0001 |" in text
    assert "| runs/run-a |" in text
    assert metrics.metadata["pruned_bytes"] > 0
