"""Where the model registry is, and how to log in: the address is a parameter, the secrets come from the environment.

The ports are the client's: 443 for ``https``, 8080 for ``http``. The token of the step's own service account opens the
cluster's API too, and who starts a run chooses the address: it goes to services of the cluster (``*.svc``) alone, and
over TLS alone. Any other registry is sent the token that was given for it. TLS is always verified: by the authority
that ``MODEL_REGISTRY_CA_CERT`` names, for a service of the cluster by OpenShift's authority for services, which is in
each pod, else by the system's.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from osft.errors import ConfigError
from osft.login import LOOPBACK, SERVICE_ACCOUNT, TOKEN_CHARACTERS

TOKEN = "MODEL_REGISTRY_TOKEN"  # noqa: S105 its name
AUTHORITY = "MODEL_REGISTRY_CA_CERT"
FORM = "https://HOST[:PORT], or http://HOST[:PORT] inside the cluster"
DEFAULT_PORTS = {"https": 443, "http": 8080}
SERVICE = re.compile(r".+\.svc(\.cluster\.local)?")
HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
# After them an address says more than scheme, host and port: a query may be a key, what is before "@" a password.
MORE_THAN_A_HOST = re.compile(r"[@?#\s\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Scheme, host and port of a server."""

    scheme: str
    host: str
    port: int | None
    """None where none is given."""


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
    server = check_address(address)
    may_take_own = server.scheme == "https" and SERVICE.fullmatch(server.host)
    token = _find_token(environment, service_account if may_take_own else None)
    host = f"[{server.host}]" if ":" in server.host else server.host
    if token and server.scheme == "http" and server.host not in LOOPBACK:
        raise ConfigError(f"model registry {host} would be sent the token unencrypted. Give an https:// address.")
    return Connection(
        address=f"{server.scheme}://{host}:{server.port or DEFAULT_PORTS[server.scheme]}",
        token=token,
        authority_file=_find_authority(environment, service_account, server.host),
        project=_read(service_account / "namespace"),
    )


def check_address(address: str) -> Address:
    """Take a registry's address apart.

    Raises:
        ConfigError: if it is none, or says more than scheme, host and port; it is not repeated then.
    """
    place = address.strip()
    if MORE_THAN_A_HOST.search(place):
        raise ConfigError(
            f"the model registry's address says more than a host, such as credentials. Give {FORM}, and the token in "
            f"{TOKEN}."
        )
    if (server := read_server(place)) is None:
        raise ConfigError(f"model registry '{place}' is not an address. Give {FORM}.")
    return server


def read_server(address: str) -> Address | None:
    """Return the parts of ``http(s)://host[:port][/]``; None if an address is none, or says more."""
    if MORE_THAN_A_HOST.search(address):
        return None
    try:
        split = urlsplit(address)
        port = split.port
    except ValueError:
        return None
    if split.scheme not in DEFAULT_PORTS or split.path.strip("/") or port == 0 or not _is_host(split.hostname or ""):
        return None
    return Address(scheme=split.scheme, host=split.hostname or "", port=port)


def _is_host(text: str) -> bool:
    """Return whether ``text`` is a name of DNS or an address of IPv4 or IPv6."""
    if HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _find_token(environment: Mapping[str, str], service_account: Path | None) -> str | None:
    given, place = environment.get(TOKEN, "").strip(), TOKEN
    if not given and service_account:
        place = str(service_account / "token")
        given = _read(service_account / "token") or ""
    if given and not TOKEN_CHARACTERS.fullmatch(given):
        raise ConfigError(f"the token in {place} has characters that no token has. Give the bare token.")
    return given or None


def _find_authority(environment: Mapping[str, str], service_account: Path, host: str) -> Path | None:
    if named := environment.get(AUTHORITY, "").strip():
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
