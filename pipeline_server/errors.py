"""What a pipeline server, or the network before it, says when it refuses a request: one line, with the mend.

An OpenShift cluster has two more that answer in the server's place: its router, with a page and status 503 for a name
that it does not know, and the proxy before the server, with 401, 403 or a redirect for a token that it does not know.
"""

from typing import Any
from urllib.parse import urlsplit

import orjson
from kfp_server_api import ApiException
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

from osft.errors import OsftError, one_line

NOT_FOUND, CONFLICT, TOO_MANY_REQUESTS, UNAVAILABLE = 404, 409, 429, 503
# The client's status of a request that TLS ended, and the only one of its reasons that lasts.
NO_TLS = 0
NOT_TRUSTED = "CERTIFICATE_VERIFY_FAILED"
UPLOADS = "/pipelines/upload"
ENDPOINT_HINT = "Is KF_PIPELINES_ENDPOINT right, and the pipeline server up?"
LOGIN_HINT = "Log in again (oc login), or renew KF_PIPELINES_TOKEN."
HINTS = {
    400: "Mend what it names.",
    401: LOGIN_HINT,
    403: "Log in again (oc login), as somebody with the role Edit in the server's project.",
    NOT_FOUND: "It was deleted meanwhile, or KF_PIPELINES_ENDPOINT is not a pipeline server's.",
    CONFLICT: "Somebody else changed it meanwhile: try again.",
    TOO_MANY_REQUESTS: "It is busy: try again later.",
}
OLDER_HINT = "If the pipeline is sound (python compile.py checks it), the server is too old for it: KFP 2.15 will do."
TOO_OLD = (
    "it has no API v2beta1: the server is older than KFP 2.0, or KF_PIPELINES_ENDPOINT is not a pipeline server's. Use "
    "a pipeline server of RHOAI 2.9 or later."
)
FAILING_HINT = "The server fails: try again later, or read the log of its pod ds-pipeline-*."


class PipelineServerError(OsftError, RuntimeError):
    """A pipeline server refused a request, or could not be reached."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        """Keep the HTTP status; ``None`` if there was no answer."""
        super().__init__(message)
        self.status = status


def as_server_error(
    error: ApiException | HTTPError, method: str, url: str, *, may_be_done: bool
) -> PipelineServerError:
    """Return the error that says what became of a request.

    Args:
        error: what the client raised.
        method: the request's method.
        url: its address.
        may_be_done: whether a second try could do the same a second time.
    """
    place = f"{method} {url.partition('?')[0]}"
    status = error.status if isinstance(error, ApiException) else None
    said, hint = _read(error, urlsplit(url).path) if status else _read_network(error)
    if may_be_done and not was_never_done(error):
        hint = f"It may be there nonetheless: look before you try again. {hint}"
    return PipelineServerError(f"{place}: {said}. {hint}", status=status or None)


def was_never_done(error: BaseException | None) -> bool:
    """Return whether the server turned a request away, or never saw it."""
    if isinstance(error, ApiException):
        return bool(0 < error.status < 500) or is_untrusted(error)
    return isinstance(error, NewConnectionError | ConnectTimeoutError)


def is_untrusted(error: ApiException) -> bool:
    """Return whether the server's certificate is not one to trust."""
    return error.status == NO_TLS and NOT_TRUSTED in str(error.reason)


def no_json(method: str, url: str) -> PipelineServerError:
    """Return the error of an answer that is a page, such as one to log in at."""
    return PipelineServerError(
        f"{method} {url.partition('?')[0]}: the answer is a page, not the API's. {LOGIN_HINT} {ENDPOINT_HINT}"
    )


def _read(error: ApiException, path: str) -> tuple[str, str]:
    """Return what an answer says, and the mend."""
    status, message = error.status, _message_of(error)
    said = f"{status} {message or error.reason or 'no reason given'}"
    if 300 <= status < 400:
        return f"{status} sends elsewhere, as to log in", LOGIN_HINT
    if status == NOT_FOUND and path.endswith("/healthz"):
        return said, f"So {TOO_OLD}"
    if status == UNAVAILABLE and not message:
        return said, f"On OpenShift that is a name without an application behind it. {ENDPOINT_HINT}"
    if status == 400 and UPLOADS in path:
        return said, OLDER_HINT
    return said, HINTS.get(status, FAILING_HINT)


def _read_network(error: ApiException | HTTPError) -> tuple[str, str]:
    """Return what the network says, and the mend."""
    if isinstance(error, ApiException):
        return (
            f"no TLS ({one_line(RuntimeError(error.reason))})",
            "Give the file of the authority that signed the server's certificate in KF_PIPELINES_SSL_SA_CERTS.",
        )
    if isinstance(error, NameResolutionError):
        return "its name is not known", ENDPOINT_HINT
    return f"it cannot be reached ({one_line(error)})", ENDPOINT_HINT


def _message_of(error: ApiException) -> str:
    """Return what the server says; nothing if the answer is a page."""
    content = error.body or b""
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    try:
        body: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        # The proxy before the server says in plain text which right is missing; a page says nothing.
        return "" if text.lstrip().startswith("<") else one_line(RuntimeError(text))
    if not isinstance(body, dict):
        return ""
    # The API's own refusals, and those of its two paths for files.
    words = body.get("message") or body.get("error_message") or body.get("error") or ""
    details = body.get("error_details")
    if isinstance(details, str) and details != words:
        words = f"{words}: {details}"
    # The server repeats the cause at each level that it came through.
    return one_line(RuntimeError(words))
