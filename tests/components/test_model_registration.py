"""The step that registers a promoted version, called as a function."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from kfp import dsl

from components.model_registration import model_registration
from osft.workspace import Manifest
from tests.registration.server import TOKEN, serving
from tests.registration.versions import publish


def test_the_step_registers_what_was_promoted_and_leaves_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace = publish(tmp_path / "workspace")
    monkeypatch.setenv("OSFT_WORKSPACE", str(workspace.root))
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", TOKEN)
    promoted = dsl.Model(uri=str(tmp_path / "promoted"))
    Manifest(path="models/demo/v0003", files=(), inputs={}).save(promoted.path)
    registered = dsl.Artifact(uri=str(tmp_path / "registered"))
    fields: dict[str, Any] = {"run_id": "run-c", "model_name": "demo", "location": "", "claim": "my-claim"}

    with serving() as server:
        model_registration.python_func(**fields, address=server.address, promoted=promoted, registered=registered)

    expected = {
        "registry": server.address, "registered_model_id": "1", "model_version_id": "2", "model_artifact_id": "1",
        "uri": "pvc://my-claim/models/demo/v0003",
        "link": f"{server.address}/api/model_registry/v1/model_versions/2",
    }  # fmt: skip
    assert registered.metadata == {**expected, "run_id": "run-c"}
    assert orjson.loads(Path(registered.path).read_bytes()) == expected
    assert TOKEN not in capfd.readouterr().err
