"""The client of a pipeline server: :class:`kfp.Client`, with our transport under it and nothing left in the home."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from kfp.client import Client
from kfp_server_api.rest import RESTClientObject

from osft.errors import ConfigError
from pipeline_server.connection import Connection

PAGE_SIZE = 100


class PipelineServer(Client):
    """A pipeline server."""

    def __init__(self, connection: Connection, transport: RESTClientObject) -> None:
        """Connect, and find out whether the server is there and new enough.

        Raises:
            PipelineServerError: if it is not.
            ConfigError: if it serves several projects, and none is given.
        """
        self.connection = connection
        self._transport = transport
        self._health: Any = None
        with warnings.catch_warnings():
            # It says on every start that it does not speak to KFP 1.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(host=connection.host, existing_token=connection.token)
        is_multi_user = bool(self.get_kfp_healthz().multi_user)
        # A server of one project is asked for none.
        self.set_user_namespace((connection.project or self.get_user_namespace()) if is_multi_user else "")
        if is_multi_user and not self.namespace:
            raise ConfigError(f"{connection.host} serves several projects. Choose one with oc project.")

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Return what the server says of itself; it is asked once, and the transport tries again."""
        self.healthzs.api_client.rest_client = self._transport
        self._health = self._health or self.healthzs.healthz_service_get_healthz()
        return self._health

    def set_user_namespace(self, namespace: str) -> None:
        """Use ``namespace``, in this process only: kfp would write it down for every later client of this user."""
        self._context_setting["namespace"] = namespace

    def _load_context_setting_or_default(self) -> None:
        """Start without settings: kfp would read a file that other clients of this user share, cookies included."""
        self._context_setting = {"namespace": ""}

    @property
    def namespace(self) -> str | None:
        """The namespace to ask for; ``None`` if the server has but one."""
        return self.get_user_namespace() or None


def is_named(name: str) -> str:
    """Return the filter that a list takes for all things of this very name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return orjson.dumps({"predicates": [predicate]}).decode()


def list_all(list_page: Callable[..., Any], field: str, **query: Any) -> Iterator[Any]:
    """Yield everything that a list has, page after page.

    Args:
        list_page: the client's method.
        field: where its answer has the things.
        query: what else it is asked.
    """
    token = ""
    while True:
        page = list_page(page_token=token, page_size=PAGE_SIZE, **query)
        yield from getattr(page, field) or []
        token = page.next_page_token
        if not token:
            return


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep kfp from printing links, which are not those of RHOAI, for the length of the block."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
