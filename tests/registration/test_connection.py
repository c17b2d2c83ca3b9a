"""The way to a registry: its address, the token that it gets, and the authority that it is checked by."""

from pathlib import Path

import pytest

from osft.errors import ConfigError
from osft.registration.connection import find_connection
from tests.registration.server import TOKEN

NOWHERE = Path("/nowhere")
INSIDE = "https://registry.rhoai-model-registries.svc:8443"


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What OpenShift puts into a pod."""
    for name, content in (("token", "of-the-pod\n"), ("namespace", "my-project"), ("service-ca.crt", "PEM")):
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("https://registry.apps.example.com", "https://registry.apps.example.com:443"),
        ("https://registry.apps.example.com:8443/", "https://registry.apps.example.com:8443"),
        ("http://model-registry-service.kubeflow.svc", "http://model-registry-service.kubeflow.svc:8080"),
        ("http://[::1]:9090", "http://[::1]:9090"),
    ],
)
def test_the_port_follows_from_the_scheme_unless_one_is_given(given: str, found: str) -> None:
    connection = find_connection(given, {}, NOWHERE)

    assert connection.address == found


@pytest.mark.parametrize(
    "address", ["registry:8080", "ftp://registry", "https://", "https://a/path", "https://a:0", "https://a;b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"model registry '.*' is not an address. Give https://HOST"):
        find_connection(address, {}, NOWHERE)


@pytest.mark.parametrize("address", ["https://registry:x", "https://[registry"])
def test_an_address_that_cannot_be_taken_apart_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an address. Give https://HOST"):
        find_connection(address, {}, NOWHERE)


@pytest.mark.parametrize(
    "address",
    ["https://me:hush@registry", "https://hush@registry", "https://registry?token=hush", "https://registry/#hush",
     "https://registry\nhush", "https://registry hush"],
)  # fmt: skip
def test_what_an_address_says_too_much_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match=r"more than a host.* Give .* the token in MODEL_REGISTRY_TOKEN") as caught:
        find_connection(address, {}, NOWHERE)

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("address", [INSIDE, "https://registry.models.svc.cluster.local:8443"])
def test_at_a_service_of_the_cluster_the_pod_logs_in_with_its_own_token(account: Path, address: str) -> None:
    connection = find_connection(address, {}, account)

    assert (connection.token, connection.project) == ("of-the-pod", "my-project")


@pytest.mark.parametrize(
    "address", ["https://registry.apps.example.com", "https://a.svc.example.com", "https://registry", "https://svc"]
)
def test_no_other_registry_is_sent_the_token_of_the_pod(account: Path, address: str) -> None:
    connection = find_connection(address, {}, account)

    assert connection.token is None


def test_the_token_of_the_environment_comes_before_the_pods(account: Path) -> None:
    connection = find_connection(INSIDE, {"MODEL_REGISTRY_TOKEN": TOKEN}, account)

    assert connection.token == TOKEN


def test_over_plain_http_the_pods_token_is_not_sent(account: Path) -> None:
    connection = find_connection("http://registry.kubeflow.svc", {}, account)

    assert connection.token is None


def test_a_token_is_not_sent_unencrypted() -> None:
    with pytest.raises(ConfigError, match="would be sent the token unencrypted. Give an https:// address"):
        find_connection("http://registry.kubeflow.svc", {"MODEL_REGISTRY_TOKEN": "hush"}, NOWHERE)


def test_a_token_that_cannot_be_one_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="token in MODEL_REGISTRY_TOKEN has characters that no token has") as caught:
        find_connection("https://registry", {"MODEL_REGISTRY_TOKEN": "hush\nhush"}, NOWHERE)

    assert "hush" not in str(caught.value)


def test_a_pods_file_that_cannot_be_read_is_named(account: Path) -> None:
    (account / "token").unlink()
    (account / "token").mkdir()

    with pytest.raises(ConfigError, match=r"token cannot be read \(Is a directory\). Mend the pod's service account"):
        find_connection(INSIDE, {}, account)


def test_the_connection_does_not_show_its_token() -> None:
    connection = find_connection("https://registry", {"MODEL_REGISTRY_TOKEN": "hush"}, NOWHERE)

    assert "hush" not in repr(connection)


def test_a_service_of_the_cluster_is_checked_by_the_clusters_authority(account: Path) -> None:
    inside = find_connection("https://registry.rhoai-model-registries.svc:8443", {}, account)
    outside = find_connection("https://registry.apps.example.com", {}, account)

    assert inside.authority_file == account / "service-ca.crt"
    assert outside.authority_file is None


def test_an_authority_of_the_environment_comes_first(account: Path) -> None:
    file = account / "token"

    connection = find_connection("https://registry.a.svc", {"MODEL_REGISTRY_CA_CERT": f"{file}\n"}, account)

    assert connection.authority_file == file


def test_an_authority_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="MODEL_REGISTRY_CA_CERT: there is no file /nowhere/ca.crt. Mount"):
        find_connection("https://registry", {"MODEL_REGISTRY_CA_CERT": "/nowhere/ca.crt"}, NOWHERE)
