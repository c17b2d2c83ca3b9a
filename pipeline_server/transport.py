"""How requests reach the pipeline server: TLS that is verified, a limit to every wait, and careful second tries.

The client as it comes waits without end, knows no authorities but certifi's, follows a redirect to a login page and
takes the page for an answer, and leaves second tries to its user. A request is tried again when the server is busy
(429) or fails (5xx), or the connection does; where a repeat could create a thing twice, which is a run or a recurring
run, since their names need not be unique, only when the server cannot have seen or accepted it.
"""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import certifi
import urllib3
from kfp_server_api import ApiException, Configuration
from kfp_server_api.rest import RESTClientObject
from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base
from urllib3.exceptions import HTTPError

from osft.errors import ConfigError, one_line
from pipeline_server.connection import AUTHORITIES, Connection
from pipeline_server.errors import NO_TLS, as_server_error, is_untrusted, no_json, was_never_done

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
# An upload of a pipeline is parsed and stored before it is answered.
READ_SECONDS = 60.0
BUSY_OR_FAILING = (429, 500, 502, 503, 504)
# A server that asks for more patience than this is not waited for that long.
MAX_RETRY_AFTER_SECONDS = 30.0
WAIT_BETWEEN_TRIES = wait_random_exponential(multiplier=0.5, max=8.0)
# Another of the same name is made each time these are asked for.
NOT_UNIQUE = ("/runs", "/recurringruns")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How often a request is tried, and how long to wait in between."""

    tries: int = 5
    wait: wait_base = WAIT_BETWEEN_TRIES


class Transport(RESTClientObject):
    """Sends the requests of a :class:`kfp.Client`, in place of the one that it makes for itself."""

    def __init__(self, connection: Connection, patience: Patience | None = None) -> None:
        """Prepare to send requests to ``connection``.

        Raises:
            ConfigError: if the file of an authority cannot be used.
        """
        super().__init__(Configuration(host=connection.host))
        self._patience = patience or Patience()
        # The tries here count and wait; those of urllib3 below them would do so unseen. Nor are redirects followed.
        context = _trust(connection) if connection.host.startswith("https://") else None
        self.pool_manager = urllib3.PoolManager(ssl_context=context, retries=False)

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        """Send a request until it is answered, and return the answer.

        Raises:
            PipelineServerError: if it is refused, or stays without an answer.
        """
        may_be_done = method == "POST" and urlsplit(url).path.endswith(NOT_UNIQUE)
        tries = Retrying(
            retry=lambda state: _may_pass(state) and (not may_be_done or was_never_done(_error_of(state))),
            wait=self._seconds_to_wait,
            stop=stop_after_attempt(self._patience.tries),
            before_sleep=_warn,
            reraise=True,
        )
        try:
            # The client takes from the headers that it is given: each try has its own.
            answer = tries(
                lambda: super(Transport, self).request(
                    method,
                    url,
                    query_params=query_params,
                    headers=dict(headers or {}),
                    body=body,
                    post_params=post_params,
                    _preload_content=_preload_content,
                    _request_timeout=_request_timeout or (CONNECT_SECONDS, READ_SECONDS),
                )
            )
        except (ApiException, HTTPError) as error:
            raise as_server_error(error, method, url, may_be_done=may_be_done) from error
        if "json" not in (answer.getheader("Content-Type") or ""):
            raise no_json(method, url)
        return answer

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        """Return the wait that the server asks for in ``Retry-After``, else one that grows."""
        error = _error_of(state)
        asked = error.headers.get("Retry-After") if isinstance(error, ApiException) and error.headers else None
        if asked is not None and asked.isdigit():
            return min(float(asked), MAX_RETRY_AFTER_SECONDS)
        return self._patience.wait(state)


def _trust(connection: Connection) -> ssl.SSLContext:
    """Return what verifies certificates: the system's authorities, certifi's, and those of the connection."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for file in connection.authority_files:
        try:
            context.load_verify_locations(file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{file} is no file of authorities ({one_line(error)}). Give one in PEM, such as {AUTHORITIES}."
            ) from error
    return context


def _may_pass(state: RetryCallState) -> bool:
    """Return whether the same request may be answered later."""
    error = _error_of(state)
    if isinstance(error, ApiException):
        return error.status in BUSY_OR_FAILING or (error.status == NO_TLS and not is_untrusted(error))
    return isinstance(error, HTTPError)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _warn(state: RetryCallState) -> None:
    error = _error_of(state)
    said = f"{error.status} {error.reason}" if isinstance(error, ApiException) else one_line(error or ValueError())
    seconds = state.next_action.sleep if state.next_action else 0
    logger.warning("the pipeline server: %s; trying again in %.0f s", said, seconds)
