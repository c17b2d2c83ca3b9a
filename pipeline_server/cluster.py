"""The OpenShift cluster that one is logged in to: token, authorities, project, and where its pipeline server is.

That is the current context of the kubeconfig, as ``oc login`` writes it, in a pod too; a pod in which nobody logged in
has its service account. The server's route and the dashboard's address are looked up with the login, so that nobody has
to find and copy them.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.incluster_config import InClusterConfigLoader
from urllib3.exceptions import HTTPError, MaxRetryError

from osft.errors import ConfigError, one_line
from osft.login import SERVICE_ACCOUNT, TOKEN_CHARACTERS

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
# The label of all routes of RHOAI's pipelines, and what the names of those begin with that are not the API's.
ROUTES = "component=data-science-pipelines"
API_ROUTE = "ds-pipeline-"
OTHER_ROUTES = ("ds-pipeline-ui-", "ds-pipeline-md-", "ds-pipeline-metadata-")
# Under this name the operators of RHOAI and of Open Data Hub put the dashboard into the console's menu.
DASHBOARD_LINK = "rhodslink"
# The loader checks little of a kubeconfig: this is what else it raises on one that is broken.
BROKEN = (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError)
# What its messages say after the name of the file; an entry they name by all that is in it, a token included.
ENTRY = r"/(?!(clusters|contexts|users)( list|$)).*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A login to a cluster."""

    token: str | None = field(repr=False)
    """Bearer token; ``None`` if the login is by certificate."""

    authority_files: tuple[Path, ...]
    """Authorities in PEM that sign what runs in the cluster."""

    project: str
    """The current project."""

    configuration: client.Configuration = field(repr=False)
    """How to reach the API server."""

    @classmethod
    def find(cls, environment: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Self | None:
        """Return the login of the kubeconfig, else that of this pod; ``None`` if there is neither.

        Whoever names a kubeconfig in ``KUBECONFIG`` wants no other login, even if the file is not there.

        Raises:
            ConfigError: if there is one, but it cannot be used.
        """
        configuration = client.Configuration()
        # Nobody looks longer than this for what a variable can say.
        configuration.retries = 2
        try:
            if file := _kubeconfig_of(environment):
                project = _load_kubeconfig(file, configuration)
                authorities = [Path(configuration.ssl_ca_cert)] if configuration.ssl_ca_cert else []
            elif "KUBECONFIG" not in environment and (service_account / "token").is_file():
                project = _load_service_account(environment, service_account, configuration)
                authorities = [service_account / "ca.crt", service_account / "service-ca.crt"]
            else:
                return None
        except (config.ConfigException, OSError) as error:
            raise ConfigError(f"the login to the cluster cannot be used: {one_line(error)}. Run oc login.") from error
        return cls(
            token=check_token((configuration.api_key.get("authorization") or "").partition(" ")[2], "of the login"),
            authority_files=tuple(file for file in authorities if file.is_file()),
            project=project,
            configuration=configuration,
        )

    def find_route(self) -> str:
        """Return the address of the project's pipeline server.

        Raises:
            ConfigError: if the project has none, or more than one, or does not say.
        """
        hint = "Give its address in KF_PIPELINES_ENDPOINT, or choose another project (oc project)."
        if not self.configuration.verify_ssl:
            raise ConfigError(
                "the kubeconfig skips the verification of TLS, so the pipeline server is not looked up. Log in with "
                "oc login --certificate-authority=FILE, or give its address in KF_PIPELINES_ENDPOINT."
            )
        try:
            routes = self._ask("route.openshift.io", "routes", label_selector=ROUTES)["items"]
        except (ApiException, HTTPError) as error:
            hint = "Log in again (oc login)." if isinstance(error, ApiException) and error.status == 401 else hint
            raise ConfigError(
                f"the routes of project {self.project} cannot be read ({_describe(error)}). {hint}"
            ) from error
        names = {route["metadata"]["name"]: route["spec"].get("host") for route in routes}
        hosts = [host for name, host in sorted(names.items()) if _is_api(name) and host]
        if len(hosts) != 1:
            found = f"{len(hosts)} pipeline servers ({', '.join(hosts)})" if hosts else "no pipeline server"
            raise ConfigError(f"project {self.project} has {found}. {hint}")
        return f"https://{hosts[0]}"

    def find_dashboard(self) -> str | None:
        """Return the address of RHOAI's dashboard; ``None`` if the cluster does not say."""
        if not self.configuration.verify_ssl:
            return None
        try:
            link = self._ask("console.openshift.io", "consolelinks", name=DASHBOARD_LINK)
        except (ApiException, HTTPError) as error:
            # Links are a convenience: without this one they lead to the API.
            logger.debug("the dashboard's address is not known: %s", _describe(error))
            return None
        return str(link["spec"]["href"]).rstrip("/")

    def _ask(self, group: str, resource: str, *, name: str | None = None, label_selector: str | None = None) -> Any:
        api = client.CustomObjectsApi(client.ApiClient(self.configuration))
        if name is not None:
            return api.get_cluster_custom_object(group, "v1", resource, name, _request_timeout=TIMEOUT_SECONDS)
        return api.list_namespaced_custom_object(
            group, "v1", self.project, resource, label_selector=label_selector, _request_timeout=TIMEOUT_SECONDS
        )


def check_token(token: str, place: str) -> str | None:
    """Return ``token`` without what surrounds it; ``None`` if it is empty.

    Raises:
        ConfigError: if it has characters that no token has, which the error of a request would print.
    """
    token = token.strip()
    if token and not TOKEN_CHARACTERS.fullmatch(token):
        raise ConfigError(f"the token {place} has spaces, line breaks or letters that no token has. Give it anew.")
    return token or None


def _kubeconfig_of(environment: Mapping[str, str]) -> str | None:
    """Return the kubeconfig's file, or files separated by colons, if one of them exists."""
    files = environment.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return files if any(Path(file).is_file() for file in files.split(":")) else None


def _load_kubeconfig(file: str, configuration: client.Configuration) -> str:
    """Fill in ``configuration``, and return the project.

    Raises:
        ConfigError: if the file is no kubeconfig, or lacks a part.
    """
    try:
        config.load_kube_config(config_file=file, client_configuration=configuration, persist_config=False)
        _, active = config.list_kube_config_contexts(config_file=file)
        return str(active["context"].get("namespace") or "default")
    except (config.ConfigException, *BROKEN) as error:
        files = "|".join(re.escape(name) for name in file.split(":") if name)
        said = one_line(RuntimeError(re.sub(f"({files}){ENTRY}", r"\1", str(error), flags=re.DOTALL)))
        # Not chained: the loader's own words may quote a token.
        raise ConfigError(
            f"the login to the cluster cannot be used: {file} is broken ({said}). Mend it, or move it away, and run oc "
            "login."
        ) from None


def _load_service_account(environment: Mapping[str, str], folder: Path, configuration: client.Configuration) -> str:
    """Fill in ``configuration``, and return the project."""
    InClusterConfigLoader(
        token_filename=str(folder / "token"), cert_filename=str(folder / "ca.crt"), environ=environment
    ).load_and_set(configuration)
    return (folder / "namespace").read_text().strip()


def _is_api(route: str) -> bool:
    return route.startswith(API_ROUTE) and not route.startswith(OTHER_ROUTES)


def _describe(error: ApiException | HTTPError) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return one_line(error.reason if isinstance(error, MaxRetryError) and error.reason else error)
