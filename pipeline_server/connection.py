"""Where the pipeline server is, and how to log in: from the environment, the kubeconfig, or a pod's service account.

The variables are those that there are: ``KF_PIPELINES_ENDPOINT`` and ``KF_PIPELINES_UI_ENDPOINT`` are kfp's, and so is
``KF_PIPELINES_SA_TOKEN_PATH``; RHOAI's workbenches set ``KF_PIPELINES_SSL_SA_CERTS``; ``KF_PIPELINES_TOKEN`` is read by
other clients of pipeline servers too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from osft.errors import ConfigError
from osft.login import LOOPBACK, SERVICE_ACCOUNT
from pipeline_server.cluster import Cluster, check_token

ENDPOINT = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 its name
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 its name
AUTHORITIES = "KF_PIPELINES_SSL_SA_CERTS"
DASHBOARD = "KF_PIPELINES_UI_ENDPOINT"
# The operator of RHOAI names the server of the application NAME so, and its route <that>-<project>.
SERVER_PREFIX = "ds-pipeline-"
NOWHERE = "https://ds-pipeline-dspa-PROJECT.apps.CLUSTER"


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A pipeline server, and the way to it."""

    host: str
    """Its address, with the scheme and without a slash at the end."""

    token: str | None = field(default=None, repr=False)
    """Bearer token; ``None`` for a forwarded port that asks for none."""

    authority_files: tuple[Path, ...] = ()
    """Authorities in PEM that may sign the server's certificate, besides the system's."""

    project: str | None = None
    """The namespace of the login."""

    dashboard: str | None = None
    """Address of the pages that people look at; ``None`` if it is not known."""

    @property
    def is_openshift_ai(self) -> bool:
        """Whether the server is one of RHOAI's, whose pages are the dashboard's."""
        return (urlsplit(self.host).hostname or "").startswith(SERVER_PREFIX)


def find_connection(environment: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Connection:
    """Return the connection that the environment, the kubeconfig or the service account describes, in that order.

    Raises:
        ConfigError: if the server is not found, there is no token for it, or the token would be sent unencrypted.
    """
    cluster = Cluster.find(environment, service_account)
    if not environment.get(ENDPOINT) and not cluster:
        raise ConfigError(
            f"no way to a pipeline server. Give its address in {ENDPOINT}, such as {NOWHERE}, or log in (oc login) and "
            "choose its project (oc project)."
        )
    host = _normalise(environment.get(ENDPOINT) or (cluster.find_route() if cluster else ""))
    is_plain = host.startswith("http://")
    if is_plain and urlsplit(host).hostname not in LOOPBACK:
        raise ConfigError(f"{ENDPOINT} {host} would carry the token unencrypted. Give an address with https://.")
    connection = Connection(
        host=host,
        # What listens on a forwarded port is not known: it is given no token but one that is meant for it.
        token=_find_token(environment, None if is_plain else cluster),
        authority_files=_find_authorities(environment, cluster),
        project=cluster.project if cluster else None,
        dashboard=environment.get(DASHBOARD, "").rstrip("/") or None,
    )
    if not connection.token and not is_plain:
        raise ConfigError(
            f"no token for {host}. Log in with oc login, or give one in {TOKEN}: oc create token SERVICE_ACCOUNT."
        )
    if connection.is_openshift_ai and not connection.dashboard and cluster:
        return replace(connection, dashboard=cluster.find_dashboard())
    return connection


def describe_connection(environment: Mapping[str, str]) -> Connection:
    """Return a connection that nothing will be sent over: what the environment alone says of it."""
    dashboard = environment.get(DASHBOARD, "").rstrip("/") or None
    return Connection(host=_normalise(environment.get(ENDPOINT) or NOWHERE), dashboard=dashboard)


def _normalise(host: str) -> str:
    if "://" not in host:
        host = f"https://{host}"
    split = urlsplit(host)
    if split.scheme not in ("http", "https") or not split.hostname or split.username or split.query or split.fragment:
        raise ConfigError(f"{ENDPOINT} '{host.rpartition('@')[2]}' is not an address such as {NOWHERE}.")
    return host.rstrip("/")


def _find_token(environment: Mapping[str, str], cluster: Cluster | None) -> str | None:
    if token := check_token(environment.get(TOKEN, ""), f"in {TOKEN}"):
        return token
    if file := environment.get(TOKEN_FILE):
        try:
            return check_token(Path(file).read_text(errors="replace"), f"in {file}")
        except OSError as error:
            raise ConfigError(f"{TOKEN_FILE}: {file} cannot be read ({error.strerror}).") from error
    return cluster.token if cluster else None


def _find_authorities(environment: Mapping[str, str], cluster: Cluster | None) -> tuple[Path, ...]:
    """Return the file of the environment, and those of the login: a workbench names one of its two."""
    file = environment.get(AUTHORITIES)
    return (*([Path(file)] if file else []), *(cluster.authority_files if cluster else ()))
