"""What a model registry, or the way to it, says when it refuses: one line, with the mend.

An OpenShift cluster answers in the registry's place, too: the proxy before it with 401 or 403, or with a page to log in
at, and the router with a page for a name that it does not know.
"""

import ssl

import aiohttp
import orjson
from mr_openapi.exceptions import ApiException, ConflictException, ServiceException

from osft.errors import OsftError, one_line

TOO_MANY_REQUESTS = 429
NOT_A_REGISTRY = "Give the address of the REST API of Kubeflow Model Registry; on RHOAI the registry's details show it."
AUTHORITY_HINT = "Give the file of the authority that signed its certificate in MODEL_REGISTRY_CA_CERT."
HINTS = {
    401: (
        "Give a token that it knows in MODEL_REGISTRY_TOKEN. Without one the step's service account logs in, but only "
        "at a service of the cluster (https://NAME.NAMESPACE.svc:PORT)."
    ),
    403: "Let the token's account use the registry: on RHOAI, Manage permissions in the model registry settings.",
    404: NOT_A_REGISTRY,
    409: "Somebody else changes it at the same time: run the step again.",
    TOO_MANY_REQUESTS: "It is busy: run the step again later.",
}
REFUSED = "It does not take what it was sent: its version is not one that this step was made for."
FAILING = "It fails: run the step again later, or read the log of its pod."
NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)
UNREADABLE = (ValueError, AttributeError)
"""What the client raises on an answer that is a page, or JSON of something else (pydantic's error is a ValueError)."""


class RegistryError(OsftError, RuntimeError):
    """A model registry refused a request, could not be reached, or knows another version by the same name."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        """Keep the HTTP status; ``None`` if there was no answer."""
        super().__init__(message)
        self.status = status


def may_pass(error: BaseException) -> bool:
    """Return whether a request may succeed when it is tried again: the registry is busy, fails or was not reached.

    A conflict is one of these: what is in the way is found by the next try.
    """
    if isinstance(error, ApiException):
        return isinstance(error, ServiceException | ConflictException) or error.status == TOO_MANY_REQUESTS
    return isinstance(error, NO_ANSWER) and not _is_untrusted(error)


def as_registry_error(error: Exception, address: str) -> RegistryError:
    """Return the error that says what became of a request.

    Args:
        error: what the client raised: one of ``ApiException``, :data:`NO_ANSWER` and :data:`UNREADABLE`.
        address: the registry's.
    """
    if isinstance(error, ApiException) and error.status:
        status = int(error.status)
        hint = HINTS.get(status, FAILING if isinstance(error, ServiceException) else REFUSED)
        return RegistryError(f"model registry {address}: {status} {_said(error)}. {hint}", status=status)
    if _is_untrusted(error):
        return RegistryError(f"model registry {address}: its certificate is not trusted. {AUTHORITY_HINT}")
    if isinstance(error, NO_ANSWER):
        reason = one_line(error) or "no answer in time"
        return RegistryError(
            f"model registry {address}: it cannot be reached ({reason}). Is the address right, and the registry up?"
        )
    return RegistryError(f"model registry {address}: what answers is not a model registry. {NOT_A_REGISTRY}")


def _is_untrusted(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError)


def _said(error: ApiException) -> str:
    """Return what an answer says: an object, a text in older registries; of a page, the status' own words."""
    try:
        body = orjson.loads(error.body or b"")
    except orjson.JSONDecodeError:
        body = None
    message = body.get("message") if isinstance(body, dict) else body
    return one_line(RuntimeError(message or error.reason or "no reason given"))
