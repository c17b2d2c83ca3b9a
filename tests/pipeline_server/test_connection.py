"""The way to the server: what is in the environment, in the kubeconfig, and in a pod."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from osft.errors import ConfigError
from pipeline_server.connection import Connection, describe_connection, find_connection
from tests.conftest import find_free_port
from tests.pipeline_server.server import TOKEN, Fault, KfpServer

Make = Callable[..., KfpServer]
Write = Callable[..., dict[str, str]]


def route(name: str, host: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"host": host}}


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment without a login."""
    return {"KUBECONFIG": str(tmp_path / "none")}


@pytest.fixture
def write_kubeconfig(tmp_path: Path) -> Write:
    """Write a kubeconfig as ``oc login`` does, and return the environment that names it."""

    def write(
        host: str, *, user: dict[str, str] | None = None, cluster: dict[str, Any] | None = None
    ) -> dict[str, str]:
        authority = tmp_path / "tls" / "ca.crt"
        of_cluster = {"certificate-authority": str(authority)} if authority.exists() else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "mine",
            "contexts": [{"name": "mine", "context": {"cluster": "c", "user": "u", "namespace": "my-project"}}],
            "clusters": [{"name": "c", "cluster": {"server": host, **(cluster or of_cluster)}}],
            "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
        }
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return {"KUBECONFIG": str(file)}

    return write


def test_the_environment_says_where_and_how(nowhere: dict[str, str], tmp_path: Path) -> None:
    environment = {
        **nowhere,
        "KF_PIPELINES_ENDPOINT": "pipelines.example/",
        "KF_PIPELINES_TOKEN": "secret",
        "KF_PIPELINES_SSL_SA_CERTS": str(tmp_path / "ca.crt"),
        "KF_PIPELINES_UI_ENDPOINT": "https://ui.example/",
    }

    connection = find_connection(environment, tmp_path)

    assert connection == Connection(
        host="https://pipelines.example",
        token="secret",
        authority_files=(tmp_path / "ca.crt",),
        dashboard="https://ui.example",
    )


def test_a_token_is_read_from_the_file_that_kfp_knows(nowhere: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "projected").write_text("secret\n")
    environment = {
        **nowhere,
        "KF_PIPELINES_ENDPOINT": "https://x.example",
        "KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "projected"),
    }

    connection = find_connection(environment, tmp_path)

    assert connection == Connection(host="https://x.example", token="secret")


def test_a_token_file_that_is_missing_is_named(nowhere: dict[str, str], tmp_path: Path) -> None:
    environment = {**nowhere, "KF_PIPELINES_ENDPOINT": "https://x.example", "KF_PIPELINES_SA_TOKEN_PATH": "/none"}

    with pytest.raises(ConfigError, match="KF_PIPELINES_SA_TOKEN_PATH: /none cannot be read"):
        find_connection(environment, tmp_path)


@pytest.mark.parametrize("token", ["a-secret\nof two lines", "a-secret→"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(
    nowhere: dict[str, str], write_kubeconfig: Write, tmp_path: Path, token: str
) -> None:
    (tmp_path / "projected").write_text(token)
    endpoint = {"KF_PIPELINES_ENDPOINT": "https://x.example"}
    for environment, place in (
        ({**nowhere, **endpoint, "KF_PIPELINES_TOKEN": token}, "in KF_PIPELINES_TOKEN"),
        ({**nowhere, **endpoint, "KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "projected")}, "in .*/projected"),
        ({**endpoint, **write_kubeconfig("https://api.example", user={"token": token})}, "of the login"),
    ):
        with pytest.raises(ConfigError, match=rf"the token {place} has spaces.*Give it anew") as caught:
            find_connection(environment, tmp_path)

        assert "a-secret" not in str(caught.value)


def test_after_oc_login_the_server_of_the_project_is_found(
    make_kfp: Make, write_kubeconfig: Write, tmp_path: Path
) -> None:
    cluster = make_kfp(tls=True)
    cluster.dashboard = "https://rhods-dashboard.apps.example"
    cluster.routes = [
        route("ds-pipeline-dspa", "ds-pipeline-dspa-my-project.apps.example"),
        route("ds-pipeline-ui-dspa", "ds-pipeline-ui-dspa-my-project.apps.example"),
        route("ds-pipeline-md-dspa", "ds-pipeline-md-dspa-my-project.apps.example"),
        route("minio-dspa", "minio-dspa-my-project.apps.example"),
    ]

    connection = find_connection(write_kubeconfig(cluster.host), tmp_path)

    assert connection == Connection(
        host="https://ds-pipeline-dspa-my-project.apps.example",
        token=TOKEN,
        authority_files=(tmp_path / "tls" / "ca.crt",),
        project="my-project",
        dashboard="https://rhods-dashboard.apps.example",
    )
    assert cluster.requests[0] == "GET /apis/route.openshift.io/v1/namespaces/my-project/routes"


def test_the_environment_goes_before_the_kubeconfig(write_kubeconfig: Write, tmp_path: Path) -> None:
    environment = {
        **write_kubeconfig("https://api.example:6443"),
        "KF_PIPELINES_ENDPOINT": "https://x.example",
        "KF_PIPELINES_TOKEN": "secret",
    }

    connection = find_connection(environment, tmp_path)

    assert (connection.host, connection.token) == ("https://x.example", "secret")


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([], "project my-project has no pipeline server. Give its address in KF_PIPELINES_ENDPOINT"),
        (
            [route("ds-pipeline-a", "a.example"), route("ds-pipeline-b", "b.example")],
            r"has 2 pipeline servers \(a\.example, b\.example\)",
        ),
    ],
)
def test_a_project_without_one_server_needs_the_address(
    make_kfp: Make, write_kubeconfig: Write, tmp_path: Path, routes: list[dict[str, Any]], message: str
) -> None:
    cluster = make_kfp(tls=True)
    cluster.routes = routes

    with pytest.raises(ConfigError, match=message):
        find_connection(write_kubeconfig(cluster.host), tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [(403, r"403 Forbidden\)\. Give its address"), (401, r"401 Unauthorized\)\. Log in again \(oc login")],
)
def test_routes_that_may_not_be_read_are_said_so(
    make_kfp: Make, write_kubeconfig: Write, tmp_path: Path, code: int, said: str
) -> None:
    cluster = make_kfp(tls=True)
    cluster.faults.append(Fault(code=code, path="/routes"))

    with pytest.raises(ConfigError, match=rf"the routes of project my-project cannot be read \({said}"):
        find_connection(write_kubeconfig(cluster.host), tmp_path)


def test_a_cluster_that_is_not_there_is_said_so(write_kubeconfig: Write, tmp_path: Path) -> None:
    environment = write_kubeconfig(f"https://127.0.0.1:{find_free_port()}")

    with pytest.raises(ConfigError, match=r"cannot be read .*refused"):
        find_connection(environment, tmp_path)


def test_a_login_that_skips_the_verification_of_tls_looks_nothing_up(write_kubeconfig: Write, tmp_path: Path) -> None:
    environment = write_kubeconfig("https://api.example:6443", cluster={"insecure-skip-tls-verify": True})

    with pytest.raises(ConfigError, match="skips the verification of TLS, so the pipeline server is not looked up"):
        find_connection(environment, tmp_path)


def test_a_login_by_certificate_has_no_token(write_kubeconfig: Write, tmp_path: Path) -> None:
    environment = {
        **write_kubeconfig("https://api.example:6443", user={}), "KF_PIPELINES_ENDPOINT": "https://x.example"
    }  # fmt: skip

    with pytest.raises(
        ConfigError, match="no token for https://x.example. Log in with oc login, or give one in KF_PIP"
    ):
        find_connection(environment, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "clusters: [",
        "- a\n- list\n",
        "apiVersion: v1\nkind: Config\n",
        "just words",
        "42",
        "",
        "\x00",
        "users: 42",
        "users: {token: a-secret}",
        "clusters: [a-secret]\nusers: [a-secret, b]",
        "contexts: [{name: mine}]\ncurrent-context: mine",
        "contexts: [{name: mine, context: {user: u}}]\ncurrent-context: mine",
        "contexts: [{name: mine, context: {user: u, cluster: c}}]\ncurrent-context: mine\nusers: [{token: a-secret}]",
    ],
)
def test_a_broken_kubeconfig_is_one_line_without_what_is_in_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(content)

    with pytest.raises(
        ConfigError, match=rf"{file} is broken \(.+\)\. Mend it, or move it away, and run oc "
    ) as caught:
        find_connection({"KUBECONFIG": str(file)}, tmp_path)

    assert "\n" not in str(caught.value)
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "broken",
    [
        {"users": [{"name": "u", "token": "a-secret"}]},
        {"clusters": [{"name": "c"}]},
        {"clusters": [{"name": "c", "cluster": {"server": 6443}}]},
        {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority": "/none/ca.crt"}}]},
        {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "x"}}]},
    ],
)
def test_a_kubeconfig_with_a_broken_part_is_one_line_without_the_token(
    write_kubeconfig: Write, tmp_path: Path, broken: dict[str, Any]
) -> None:
    environment = write_kubeconfig("https://api.example:6443")
    file = Path(environment["KUBECONFIG"])
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **broken}))

    with pytest.raises(ConfigError, match=rf"{file} is broken \(.+\)\. Mend it") as caught:
        find_connection(environment, tmp_path)

    assert "\n" not in str(caught.value)
    assert "a-secret" not in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.fixture
def write_account(tmp_path: Path) -> Callable[[KfpServer], Path]:
    """Write a service account as a pod has it, and return its folder."""

    def write(cluster: KfpServer) -> Path:
        cluster.routes = [route("ds-pipeline-dspa", "ds-pipeline-dspa-a-project.apps.example")]
        account = tmp_path / "account"
        account.mkdir()
        (account / "token").write_text(TOKEN)
        (account / "namespace").write_text("a-project")
        for name in ("ca.crt", "service-ca.crt"):
            (account / name).write_bytes((tmp_path / "tls" / "ca.crt").read_bytes())
        return account

    return write


def test_a_pod_uses_its_service_account(
    make_kfp: Make, write_account: Callable[[KfpServer], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_kfp(tls=True)
    account = write_account(cluster)
    # Nobody logged in.
    monkeypatch.setenv("HOME", str(tmp_path))
    address = urlsplit(cluster.host)
    environment = {
        "KUBERNETES_SERVICE_HOST": str(address.hostname),
        "KUBERNETES_SERVICE_PORT": str(address.port),
        # As RHOAI sets them in its workbenches.
        "KF_PIPELINES_SA_TOKEN_PATH": str(account / "token"),
        "KF_PIPELINES_SSL_SA_CERTS": str(tmp_path / "bundle.crt"),
    }

    connection = find_connection(environment, account)

    assert connection.host == "https://ds-pipeline-dspa-a-project.apps.example"
    assert (connection.token, connection.project) == (TOKEN, "a-project")
    assert connection.authority_files == (tmp_path / "bundle.crt", account / "ca.crt", account / "service-ca.crt")
    # Its dashboard is a convenience: this cluster has none.
    assert connection.dashboard is None


def test_in_a_pod_too_the_login_of_oc_goes_before_the_service_account(
    make_kfp: Make,
    write_kubeconfig: Write,
    write_account: Callable[[KfpServer], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = write_account(make_kfp(tls=True))
    (tmp_path / ".kube").mkdir()
    Path(write_kubeconfig("https://api.example:6443", user={"token": "mine"})["KUBECONFIG"]).rename(
        tmp_path / ".kube" / "config"
    )
    monkeypatch.setenv("HOME", str(tmp_path))

    connection = find_connection({"KF_PIPELINES_ENDPOINT": "https://x.example"}, account)

    assert (connection.token, connection.project) == ("mine", "my-project")


def test_who_names_a_kubeconfig_that_is_not_there_does_not_get_the_service_account(
    make_kfp: Make, write_account: Callable[[KfpServer], Path], nowhere: dict[str, str]
) -> None:
    account = write_account(make_kfp(tls=True))

    with pytest.raises(ConfigError, match="no way to a pipeline server"):
        find_connection(nowhere, account)


def test_with_no_login_and_no_address_one_is_asked_for(nowhere: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no way to a pipeline server\. Give its address in KF_PIPELINES_ENDPOINT.*oc"
    ):
        find_connection(nowhere, tmp_path)


def test_no_token_goes_unencrypted_over_a_network(nowhere: dict[str, str], tmp_path: Path) -> None:
    environment = {**nowhere, "KF_PIPELINES_ENDPOINT": "http://x.example", "KF_PIPELINES_TOKEN": "secret"}

    with pytest.raises(ConfigError, match="http://x.example would carry the token unencrypted") as caught:
        find_connection(environment, tmp_path)

    assert "secret" not in str(caught.value)


def test_a_forwarded_port_needs_no_token_and_gets_not_that_of_the_cluster(
    write_kubeconfig: Write, tmp_path: Path
) -> None:
    environment = {
        **write_kubeconfig("https://api.example:6443"), "KF_PIPELINES_ENDPOINT": "http://localhost:8888"
    }  # fmt: skip

    assert find_connection(environment, tmp_path).token is None


@pytest.mark.parametrize(
    "address", ["ftp://x.example", "https://", "https://me:secret@x.example", "https://x.example?a=1"]
)
def test_what_is_no_address_is_refused_without_its_password(
    nowhere: dict[str, str], tmp_path: Path, address: str
) -> None:
    with pytest.raises(ConfigError, match=r"KF_PIPELINES_ENDPOINT '.*' is not an address such as https://") as caught:
        find_connection({**nowhere, "KF_PIPELINES_ENDPOINT": address, "KF_PIPELINES_TOKEN": "t"}, tmp_path)

    assert "secret" not in str(caught.value)


def test_a_dry_run_needs_no_login() -> None:
    assert describe_connection({}).host == "https://ds-pipeline-dspa-PROJECT.apps.CLUSTER"
    assert describe_connection({"KF_PIPELINES_ENDPOINT": "x.example"}).host == "https://x.example"
