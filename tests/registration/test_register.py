"""A version is registered once, with its story, whatever happens in between."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osft.errors import MissingPathError
from osft.registration.errors import RegistryError
from osft.registration.register import Registration
from osft.registration.registry import Patience
from osft.versions.lineage import Lineage
from osft.workspace import Workspace
from tests.registration.server import Fault, RegistryServer
from tests.registration.versions import publish, register
from tests.versions.chains import make_lineage, make_score, write_version

WRITES = ["registered_models", "model_versions", "artifacts"]
ROOT = Path(__file__).parents[2]
REGISTER = """
import sys
from pathlib import Path
from osft.registration.connection import Connection
from osft.registration.register import register_version
from osft.workspace import Workspace

root, address, token = sys.argv[1:]
register_version(
    Workspace(Path(root)), Connection(address=address, token=token), model_name="demo", version="v0003",
    location="pvc://osft-workspace",
)
"""


def test_model_version_and_artifact_tell_what_was_made_from_what_and_where_it_is(
    workspace: Workspace, server: RegistryServer
) -> None:
    registration = register(workspace, server, project="my-project")

    (model,), (version,), (artifact,) = server.api.models, server.api.versions, server.api.artifacts
    assert (model["name"], model["owner"]) == ("demo", "osft-continual-learning")
    assert (version["name"], version["registeredModelId"], version["state"]) == ("v0003", model["id"], "LIVE")
    assert version["description"].startswith("Learnt s3://bucket/domains/3.jsonl (303 rows) from v0002, gained ")
    run = {"modelSourceKind": "kfp", "modelSourceClass": "pipelinerun", "modelSourceGroup": "my-project"}
    assert {"uri": "pvc://osft-workspace/models/demo/v0003", "modelFormatName": "vLLM", **run}.items() <= (
        artifact.items()
    )
    assert artifact["modelSourceId"] == "6f1c2b0e-0000-4000-8000-000000000003"
    assert registration == Registration(
        registry=server.address,
        registered_model_id=model["id"],
        model_version_id=version["id"],
        model_artifact_id=artifact["id"],
        uri="pvc://osft-workspace/models/demo/v0003",
        link=f"{server.address}/api/model_registry/v1/model_versions/{version['id']}",
    )


def test_numbers_are_registered_as_numbers_and_truth_as_truth(workspace: Workspace, server: RegistryServer) -> None:
    register(workspace, server)

    properties = server.api.versions[0]["customProperties"]
    assert properties["forgetting_upper"] == {"metadataType": "MetadataDoubleValue", "double_value": 0.031}
    assert properties["data_rows"] == {"metadataType": "MetadataIntValue", "int_value": "303"}
    assert properties["passed"] == {"metadataType": "MetadataBoolValue", "bool_value": True}
    assert properties["lineage"]["string_value"] == "org/base-model -> v0001 -> v0002 -> v0003"


@pytest.mark.parametrize("seed", [10**9, -(10**9), 2**40])
def test_a_whole_number_that_the_registry_cannot_hold_is_registered_as_text(
    workspace: Workspace, server: RegistryServer, seed: int
) -> None:
    write_version(workspace, _with_seed(make_lineage(4, [make_score("arc_easy", 0.7)]), seed))

    register(workspace, server, "v0004")

    registered = server.api.versions[0]["customProperties"]["seed"]
    assert registered == {"metadataType": "MetadataStringValue", "string_value": str(seed)}


@pytest.mark.parametrize("seed", [0, 10**9 - 1, -(10**9) + 1])
def test_any_other_whole_number_is_registered_as_one(workspace: Workspace, server: RegistryServer, seed: int) -> None:
    write_version(workspace, _with_seed(make_lineage(4, [make_score("arc_easy", 0.7)]), seed))

    register(workspace, server, "v0004")

    registered = server.api.versions[0]["customProperties"]["seed"]
    assert registered == {"metadataType": "MetadataIntValue", "int_value": str(seed)}


def test_registering_again_changes_nothing(workspace: Workspace, server: RegistryServer) -> None:
    first = register(workspace, server)

    second = register(workspace, server)

    assert second == first
    assert server.writes == WRITES


def test_versions_of_one_model_stand_side_by_side(workspace: Workspace, server: RegistryServer) -> None:
    second, third = register(workspace, server, "v0002"), register(workspace, server, "v0003")

    assert second.registered_model_id == third.registered_model_id
    assert second.model_version_id != third.model_version_id
    assert [one["name"] for one in server.api.versions] == ["v0002", "v0003"]


@pytest.mark.parametrize("last_write", WRITES)
def test_a_step_that_failed_goes_on_where_it_was(workspace: Workspace, server: RegistryServer, last_write: str) -> None:
    server.faults.append(Fault(code=0, path=last_write, method="POST", is_done=True))
    with pytest.raises(RegistryError, match="cannot be reached"):
        register(workspace, server, patience=Patience(tries=1))

    register(workspace, server)

    assert server.writes == WRITES


def test_a_step_that_was_killed_before_the_artifact_goes_on_with_it(
    workspace: Workspace, server: RegistryServer
) -> None:
    server.faults.append(Fault(code=0, path="model_versions", method="POST", is_done=True, hangs=True))
    command = [sys.executable, "-c", REGISTER, str(workspace.root), server.address, str(server.token)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert server.is_hanging.wait(timeout=60)
        process.kill()

    register(workspace, server)

    assert server.writes == WRITES
    assert [len(server.api.models), len(server.api.versions), len(server.api.artifacts)] == [1, 1, 1]


def test_two_runs_that_create_one_model_at_once_share_it(workspace: Workspace, server: RegistryServer) -> None:
    server.meetings["POST registered_models"] = threading.Barrier(2)

    with ThreadPoolExecutor(2) as pool:
        second, third = pool.map(lambda version: register(workspace, server, version), ["v0002", "v0003"])

    assert second.registered_model_id == third.registered_model_id
    assert sorted(one["name"] for one in server.api.versions) == ["v0002", "v0003"]


def test_two_pods_that_register_one_version_at_once_register_it_once(
    workspace: Workspace, server: RegistryServer
) -> None:
    for request in ("POST registered_models", "POST model_versions", "POST artifacts"):
        server.meetings[request] = threading.Barrier(2)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda version: register(workspace, server, version), ["v0003", "v0003"])

    assert first == second
    assert [len(server.api.models), len(server.api.versions), len(server.api.artifacts)] == [1, 1, 1]


def test_a_version_of_another_run_is_not_overwritten(
    workspace: Workspace, server: RegistryServer, tmp_path: Path
) -> None:
    theirs = publish(tmp_path / "other", versions=2)
    register(theirs, server, "v0002")
    server.api.versions[0]["customProperties"]["run_id"]["string_value"] = "another-run"

    with pytest.raises(
        RegistryError,
        match=r"version v0002 of 'demo' is registered already, from run another-run at pvc://osft-workspace/models/demo/"
        r"v0002, and this one is from run 6f1c2b0e-.*02 at pvc://ours/models/demo/v0002. Nothing was changed: give ",
    ):
        register(workspace, server, "v0002", location="pvc://ours")

    assert server.writes == WRITES


def test_a_version_at_another_place_is_not_moved(workspace: Workspace, server: RegistryServer) -> None:
    register(workspace, server)

    with pytest.raises(
        RegistryError, match=r"at pvc://osft-workspace/models/demo/v0003, and .* at s3://bucket/models/d"
    ):
        register(workspace, server, location="s3://bucket")

    assert server.api.artifacts[0]["uri"] == "pvc://osft-workspace/models/demo/v0003"


def test_a_version_that_was_registered_by_hand_is_not_taken_over(workspace: Workspace, server: RegistryServer) -> None:
    register(workspace, server)
    del server.api.versions[0]["customProperties"]
    server.api.artifacts.clear()

    with pytest.raises(RegistryError, match=r"registered already, from run \(none\) at \(no place\), and this one"):
        register(workspace, server)


@pytest.mark.parametrize("version", ["v0002", "v0003"], ids=["registered", "new"])
def test_nothing_is_registered_in_a_model_that_was_archived(
    workspace: Workspace, server: RegistryServer, version: str
) -> None:
    register(workspace, server, "v0002")
    server.api.models[0]["state"] = "ARCHIVED"

    with pytest.raises(
        RegistryError, match=r"the registered model 'demo' is archived. Restore it in the registry and "
    ):
        register(workspace, server, version)

    assert server.writes == WRITES


def test_a_version_that_was_archived_is_said_to_be(workspace: Workspace, server: RegistryServer) -> None:
    register(workspace, server)
    server.api.versions[0]["state"] = "ARCHIVED"
    server.api.artifacts.clear()

    with pytest.raises(RegistryError, match=r"version v0003 of 'demo' is archived. Restore it in the registry and reg"):
        register(workspace, server)

    assert server.writes == WRITES


def test_without_a_version_the_current_one_is_registered(workspace: Workspace, server: RegistryServer) -> None:
    registration = register(workspace, server, None)

    assert registration.uri == "pvc://osft-workspace/models/demo/v0003"


def test_a_version_that_is_not_promoted_is_not_registered(workspace: Workspace, server: RegistryServer) -> None:
    with pytest.raises(MissingPathError, match="model 'demo' has no version 'v0009'"):
        register(workspace, server, "v0009")

    assert server.requests == []


def _with_seed(lineage: Lineage, seed: int) -> Lineage:
    lineage.parameters["training"]["seed"] = seed
    return lineage
