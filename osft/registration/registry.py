"""The requests to a model registry: verified TLS, a limit to every wait, and second tries that do nothing twice.

The client is `model-registry <https://github.com/kubeflow/hub>`_; of its two layers this is the generated one,
``mr_openapi``. The layer above it, ``ModelRegistry``, registers a version by one call that fails on a version that is
there, so a step that was killed before the artifact could never end; it cannot describe the registered model; it
refuses TLS without a token, sends a pod's token over plain HTTP unasked, does not try again, and changes the process
when it is imported or made: a handler on the root logger, and asyncio made reentrant.

Which API a registry serves is found out: the client 0.3.18 asks for ``v1``, which came in 2026, while registries of
RHOAI up to then serve ``v1alpha3`` only (``404 page not found``). What is asked for here is the same in both
(Kubeflow's KEP-0004), but for the version in the path.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from mr_openapi import ApiClient, Configuration, ModelRegistryServiceApi
from mr_openapi.exceptions import ApiException, NotFoundException
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)
from tenacity.wait import wait_base

from osft.errors import ConfigError, one_line
from osft.login import LOOPBACK
from osft.registration.connection import Connection
from osft.registration.errors import NO_ANSWER, UNREADABLE, as_registry_error, may_pass

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Outcome = TypeVar("Outcome")
Request = Callable[[ModelRegistryServiceApi], Awaitable[Found]]

PATH = "/api/model_registry"
GENERATED_FOR = "v1"
# The external id of no model.
NOBODY = "osft-is-there-an-api"
JSON = "application/json"
API_VERSIONS = (GENERATED_FOR, "v1alpha3")
# Seconds.
WAIT_BETWEEN_TRIES = wait_random_exponential(multiplier=0.5, max=10.0)
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a registry that fails, or is not there, is tried again."""

    tries: int = 20
    """Of one request, the first included."""

    total_seconds: float = 60.0
    """No try of a request begins later than this after its first: in a minute a registry restarts."""

    answer_seconds: float = 30.0
    """Longest try. The answers are small: who is silent for longer is gone."""

    wait: wait_base = WAIT_BETWEEN_TRIES


class Registry:
    """A model registry that has answered."""

    def __init__(self, client: "_Client", address: str, patience: Patience) -> None:
        """Ask nothing yet; :func:`connect` does."""
        self.address = address
        self._client = client
        self._api = ModelRegistryServiceApi(client)
        self._patience = patience

    @property
    def api_address(self) -> str:
        """Address of the API in the version that the registry serves."""
        return f"{self.address}{PATH}/{self._client.api_version}"

    async def find(self, request: Request[Found]) -> Found | None:
        """Return what a request finds, None if there is no such thing.

        Raises:
            RegistryError: if the registry refuses, keeps failing, or is none.
        """
        return await self._persist(self._find, request)

    async def ensure(self, find: Request[Found], create: Request[Found]) -> Found:
        """Return what is there, or create it.

        It is looked for before each try to create it: who was faster, or an answer that was lost, is found.

        Raises:
            RegistryError: if the registry refuses, keeps failing, or is none.
        """
        return await self._persist(self._find_or_create, find, create)

    async def find_api_version(self) -> None:
        """Take the newest version of the API that both sides know.

        Raises:
            RegistryError: if there is none.
        """
        for version in API_VERSIONS:
            self._client.api_version = version
            if await self._persist(self._has_api):
                return
        raise as_registry_error(NotFoundException(status=404, reason="no API of a model registry"), self.address)

    async def _has_api(self) -> bool:
        """Return whether there is an API in this version: it says in JSON that it knows no such model.

        Nothing that others registered is read, since the client refuses what it does not expect in it.
        """
        try:
            await self._api.find_registered_model(external_id=NOBODY)
        except NotFoundException as error:
            return JSON in error.headers.get("Content-Type", "")
        return True

    async def _find(self, request: Request[Found]) -> Found | None:
        try:
            return await request(self._api)
        except NotFoundException:
            return None

    async def _find_or_create(self, find: Request[Found], create: Request[Found]) -> Found:
        found = await self._find(find)
        return await create(self._api) if found is None else found

    async def _persist(self, work: Callable[..., Awaitable[Outcome]], *requests: Request[Any]) -> Outcome:
        """Return the outcome of ``work``, which is done again while its errors may pass."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_attempt(self._patience.tries) | stop_before_delay(self._patience.total_seconds),
            wait=self._patience.wait,
            before_sleep=self._say_why,
            reraise=True,
        )
        try:
            return await retrying(work, *requests)
        except (ApiException, *NO_ANSWER, *UNREADABLE) as error:
            raise as_registry_error(error, self.address) from error

    def _say_why(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Exception):
            logger.warning("%s Trying again.", as_registry_error(error, self.address))


@asynccontextmanager
async def connect(connection: Connection, patience: Patience) -> AsyncIterator[Registry]:
    """Open a connection that is closed at the end of the block.

    Raises:
        ConfigError: if the authority's file holds no certificate.
        RegistryError: if there is no registry, or it lets nobody in with this token.
    """
    authority = connection.authority_file
    configuration = Configuration(
        host=connection.address, access_token=connection.token, ssl_ca_cert=str(authority) if authority else None
    )
    configuration.proxy = _find_proxy(connection.address)
    try:
        client = _Client(configuration, patience)
    except OSError as error:
        raise ConfigError(f"{authority} holds no certificate in PEM ({one_line(error)}). Give another file.") from error
    try:
        registry = Registry(client, connection.address, patience)
        await registry.find_api_version()
        yield registry
    finally:
        await client.close()


def _find_proxy(address: str) -> str | None:
    """Return the proxy that the environment names for an address, None if it names none.

    None for this machine, too: what is sent there is not encrypted, and is not meant to leave it.
    """
    split = urlsplit(address)
    return None if split.hostname in LOOPBACK or proxy_bypass(split.netloc) else getproxies().get(split.scheme)


class _Client(ApiClient):
    """The generated client, for either version of the API, with a limit to every wait and without ``~/.netrc``."""

    def __init__(self, configuration: Configuration, patience: Patience) -> None:
        """Open no connection yet; an event loop must be running.

        The client's own session takes proxies from the environment and logins from ``~/.netrc`` by one switch, and a
        login for the registry's host makes it refuse the token.
        """
        super().__init__(configuration)
        self.api_version = GENERATED_FOR
        self.rest_client.pool_manager = ClientSession(connector=TCPConnector(ssl=self.rest_client.ssl_context))
        self._timeout = ClientTimeout(total=patience.answer_seconds, sock_connect=CONNECT_SECONDS)

    def param_serialize(self, method: str, resource_path: str, *parts: Any, **named: Any) -> Any:
        """Ask in the registry's version of the API."""
        path = resource_path.replace(f"{PATH}/{GENERATED_FOR}/", f"{PATH}/{self.api_version}/", 1)
        return super().param_serialize(method, path, *parts, **named)

    async def call_api(self, *parts: Any, _request_timeout: None = None, **named: Any) -> Any:
        """Wait no longer than is said; the client's own limit is five minutes."""
        return await super().call_api(*parts, _request_timeout=self._timeout, **named)
