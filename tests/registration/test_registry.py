"""Requests to a registry: TLS is verified, what may pass is tried again, and a refusal is one line with the mend."""

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
from tenacity import wait_none

from osft.errors import ConfigError
from osft.registration.errors import RegistryError
from osft.registration.registry import Patience
from osft.workspace import Workspace
from tests.conftest import find_free_port
from tests.kubeflow.api_server.tls import make_server_context
from tests.registration.api import Api
from tests.registration.server import LOGIN_PAGE, TOKEN, Fault, RegistryServer, serving
from tests.registration.versions import register

WRITES = ["registered_models", "model_versions", "artifacts"]


def test_a_registry_whose_authority_is_given_is_trusted(workspace: Workspace, tmp_path: Path) -> None:
    context, authority = make_server_context(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority)

    with serving(tls=context) as server:
        register(workspace, server, authority_file=tmp_path / "ca.crt")

    assert server.writes == WRITES


def test_a_registry_whose_authority_is_not_known_gets_neither_request_nor_token(
    workspace: Workspace, tmp_path: Path
) -> None:
    context, _ = make_server_context(tmp_path)

    with (
        serving(tls=context) as server,
        pytest.raises(RegistryError, match=r"its certificate is not trusted. Give the file .* MODEL_REGISTRY_CA_CERT"),
    ):
        register(workspace, server)

    assert (server.requests, server.tokens) == ([], [])


def test_an_authority_that_is_no_certificate_is_named(
    workspace: Workspace, server: RegistryServer, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")

    with pytest.raises(ConfigError, match=r"ca.crt holds no certificate in PEM \(.*\). Give another file"):
        register(workspace, server, authority_file=tmp_path / "ca.crt")


def test_the_token_goes_with_every_request(workspace: Workspace, server: RegistryServer) -> None:
    register(workspace, server)

    assert set(server.tokens) == {f"Bearer {TOKEN}"}


def test_a_registry_that_asks_for_no_token_gets_none(workspace: Workspace) -> None:
    with serving(token=None) as server:
        register(workspace, server)

    assert set(server.tokens) == {None}


def test_a_registry_before_version_1_of_the_api_is_served_too(workspace: Workspace) -> None:
    with serving(Api(serves=("v1alpha3",))) as server:
        registration = register(workspace, server)

    assert server.writes == WRITES
    assert registration.link == f"{server.address}/api/model_registry/v1alpha3/model_versions/2"


def test_a_registry_that_does_not_know_of_sources_is_served_too(workspace: Workspace) -> None:
    with serving(Api(serves=("v1alpha3",), knows_sources=False)) as server:
        first, second = register(workspace, server), register(workspace, server)

    assert (second, server.writes) == (first, WRITES)
    assert "modelSourceId" not in server.api.artifacts[0]


def test_a_login_in_netrc_does_not_take_the_place_of_the_token(
    workspace: Workspace, server: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    register(workspace, server)

    assert set(server.tokens) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("is_excepted", [False, True])
def test_a_proxy_of_the_environment_is_used_unless_the_host_is_excepted(
    workspace: Workspace, server: RegistryServer, monkeypatch: pytest.MonkeyPatch, *, is_excepted: bool
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", ".invalid" if is_excepted else "")
    expected = pytest.raises(RegistryError, match="cannot be reached") if is_excepted else nullcontext()

    with expected:
        register(workspace, server, address="http://registry.invalid:8080")

    assert server.writes == ([] if is_excepted else WRITES)


def test_what_stays_on_this_machine_goes_through_no_proxy(
    workspace: Workspace, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{find_free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)

    register(workspace, server)

    assert server.writes == WRITES


def test_a_token_that_is_not_known_is_refused_at_once(
    workspace: Workspace, server: RegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RegistryError, match=r"401 .*MODEL_REGISTRY_TOKEN. Without one .*NAMESPACE.svc") as caught:
        register(workspace, server, token="another-secret")

    assert (len(server.requests), caught.value.status) == (1, 401)
    assert "another-secret" not in f"{caught.value} {caplog.text}"


def test_an_account_without_the_right_is_told_who_gives_it(workspace: Workspace, server: RegistryServer) -> None:
    server.faults.append(Fault(code=403, path="/registered_model", page=b"Forbidden"))

    with pytest.raises(RegistryError, match=r"403 Forbidden. Let the token's account use the registry: on RHOAI, Man"):
        register(workspace, server)


@pytest.mark.parametrize("path", ["/registered_model", "/model_version", "/model_artifact", "/artifacts"])
def test_a_registry_that_fails_for_a_while_is_tried_again(
    workspace: Workspace, server: RegistryServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    method = "POST" if path == "/artifacts" else "GET"
    server.faults.append(Fault(code=503, path=path, method=method, times=2))

    with caplog.at_level(logging.WARNING, logger="osft.registration"):
        register(workspace, server)

    assert [len(server.api.models), len(server.api.versions), len(server.api.artifacts)] == [1, 1, 1]
    assert caplog.text.count("503 a fault. It fails: run the step again later") == 2


def test_a_registry_that_is_busy_is_tried_again(workspace: Workspace, server: RegistryServer) -> None:
    server.faults.append(Fault(code=429, path="/model_versions", method="POST"))

    register(workspace, server)

    assert len(server.api.versions) == 1


def test_a_registry_that_keeps_failing_is_given_up(workspace: Workspace, server: RegistryServer) -> None:
    server.faults.append(Fault(code=500, path="/model_versions", method="POST", times=9))

    with pytest.raises(RegistryError, match=r"500 a fault. It fails: run the step again later, or read the log of its"):
        register(workspace, server)

    assert server.writes.count("model_versions") == 3


def test_a_registry_that_stays_silent_is_given_up_in_time(workspace: Workspace, server: RegistryServer) -> None:
    server.faults.append(Fault(code=0, path="/registered_model", times=99, hangs=True))
    patience = Patience(tries=99, total_seconds=0.3, answer_seconds=0.1, wait=wait_none())

    with pytest.raises(RegistryError, match=r"cannot be reached \(no answer in time\)"):
        register(workspace, server, patience=patience)

    assert len(server.requests) <= 4


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("serves", [("v1", "v1alpha3"), ("v1alpha3",)], ids=["of today", "older"])
def test_an_answer_that_was_lost_after_the_write_makes_no_second_one(
    workspace: Workspace, serves: tuple[str, ...], path: str
) -> None:
    with serving(Api(serves=serves)) as server:
        server.faults.append(Fault(code=0, path=path, method="POST", is_done=True))
        register(workspace, server)

    assert server.writes == WRITES
    assert [len(server.api.models), len(server.api.versions), len(server.api.artifacts)] == [1, 1, 1]


def test_a_registry_that_is_not_up_is_named(workspace: Workspace, server: RegistryServer) -> None:
    address = f"http://127.0.0.1:{find_free_port()}"

    with pytest.raises(RegistryError, match=rf"model registry {address}: it cannot be reached \(.*\). Is the address"):
        register(workspace, server, address=address)


@pytest.mark.parametrize("page", [LOGIN_PAGE, b"{}", b"[1]"], ids=["a page", "an object", "a list"])
def test_what_answers_otherwise_is_no_registry(workspace: Workspace, server: RegistryServer, page: bytes) -> None:
    server.faults.append(Fault(code=200, path="/registered_model", page=page))

    with pytest.raises(RegistryError, match=r"what answers is not a model registry. Give the address of the REST API"):
        register(workspace, server)


def test_a_server_without_the_api_is_no_registry(workspace: Workspace) -> None:
    with (
        serving(Api(serves=())) as server,
        pytest.raises(RegistryError, match=r"404 no API of a model registry. Give the address of the REST API of"),
    ):
        register(workspace, server)


def test_a_registry_that_does_not_take_what_it_is_sent_says_what(workspace: Workspace, server: RegistryServer) -> None:
    server.faults.append(Fault(code=400, path="/registered_models", method="POST"))

    with pytest.raises(RegistryError, match=r"400 a fault. It does not take what it was sent: its version is not one"):
        register(workspace, server)


def test_what_others_registered_is_not_read(workspace: Workspace, server: RegistryServer) -> None:
    server.api.models.append({"id": "1", "name": "theirs", "customProperties": {"rows": {"metadataType": "NewKind"}}})

    register(workspace, server)

    assert [one["name"] for one in server.api.models] == ["theirs", "demo"]
