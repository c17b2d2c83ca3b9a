"""Where the model registry is, and how to log in: the address is a parameter, the secrets come from the environment.

The ports are the client's: 443 for ``https``, 8080 for ``http``. The token of the step's own service account goes to a
registry with TLS only; over plain ``http``, which is for registries inside the cluster that ask for no token, none is
sent. TLS is always verified: by the authority that ``MODEL_REGISTRY_CA_CERT`` names, for a service of the cluster
(``*.svc``) by OpenShift's authority for services, which is in each pod, else by the system's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from osft.errors import ConfigError

TOKEN = "MODEL_REGISTRY_TOKEN"  # noqa: S105 its name
AUTHORITY = "MODEL_REGISTRY_CA_CERT"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FORM = "https://HOST[:PORT], or http://HOST[:PORT] inside the cluster"
DEFAULT_PORTS = {"https": 443, "http": 8080}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SERVICE = re.compile(r".+\.svc(\.cluster\.local)?")
TOKEN_CHARACTERS = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A model registry, and the way to it."""

    address: str
    """With scheme and port, without a slash at the end."""

    token: str | None = field(default=None, repr=False)
    """Bearer token; None for a registry that asks for none."""

    authority_file: Path | None = None
    """Authorities in PEM that may sign its certificate; None: the system's."""

    project: str | None = None
    """Namespace that the pipeline runs in; None outside a cluster."""


def find_connection(
    address: str, environment: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT
) -> Connection:
    """Return the way to the registry at ``address``.

    Args:
        address: ``https://host[:port]`` or ``http://host[:port]``.
        environment: may hold ``MODEL_REGISTRY_TOKEN`` and ``MODEL_REGISTRY_CA_CERT``.
        service_account: folder of the pod's own token and authorities, which need not exist.

    Raises:
        ConfigError: if the address is none, a token would be sent unencrypted, or a file cannot be read.
    """
    scheme, host, port = _read_address(address)
    token = _find_token(environment, service_account if scheme == "https" else None)
    if token and scheme == "http" and host not in LOOPBACK:
        raise ConfigError(f"model registry {address} would be sent the token unencrypted. Give an https:// address.")
    return Connection(
        address=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        token=token,
        authority_file=_find_authority(environment, service_account, host),
        project=_read(service_account / "namespace"),
    )


def _read_address(address: str) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    try:
        split = urlsplit(address.strip())
        port = split.port
    except ValueError as error:
        raise ConfigError(f"the model registry's address is not one ({error}). Give {FORM}.") from error
    if split.username or split.password:
        raise ConfigError(f"the model registry's address carries credentials. Give {FORM}, and the token in {TOKEN}.")
    if split.scheme not in DEFAULT_PORTS or not split.hostname or split.path.strip("/") or split.query:
        raise ConfigError(f"model registry '{address}' is not an address. Give {FORM}.")
    return split.scheme, split.hostname, port or DEFAULT_PORTS[split.scheme]


def _find_token(environment: Mapping[str, str], service_account: Path | None) -> str | None:
    given, place = environment.get(TOKEN, "").strip(), TOKEN
    if not given and service_account:
        place = str(service_account / "token")
        given = _read(service_account / "token") or ""
    if given and not TOKEN_CHARACTERS.fullmatch(given):
        raise ConfigError(f"the token in {place} has characters that no token has. Give the bare token.")
    return given or None


def _find_authority(environment: Mapping[str, str], service_account: Path, host: str) -> Path | None:
    if named := environment.get(AUTHORITY):
        if not Path(named).is_file():
            raise ConfigError(f"{AUTHORITY}: there is no file {named}. Mount the authority's certificate there.")
        return Path(named)
    of_services = service_account / "service-ca.crt"
    return of_services if SERVICE.fullmatch(host) and of_services.is_file() else None


def _read(file: Path) -> str | None:
    """Return what a file of the service account says; None outside a cluster."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}). Mend the pod's service account.") from error
