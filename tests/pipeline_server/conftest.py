"""A pipeline server on loopback for each test that asks for one, and a small pipeline to bring there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kfp import dsl
from kfp.compiler import Compiler
from kfp.dsl.base_component import BaseComponent
from tenacity import wait_none

from pipeline_server.client import PipelineServer
from pipeline_server.connection import Connection
from pipeline_server.transport import Patience, Transport
from tests.pipeline_server.api import Api
from tests.pipeline_server.server import TOKEN, KfpServer, make_tls

AT_ONCE = Patience(tries=3, wait=wait_none())


@dsl.container_component
def say(text: str) -> dsl.ContainerSpec:
    """Say something."""
    return dsl.ContainerSpec(image="a/b:1", command=["echo", text])


@dsl.pipeline(name="osft-tiny", description="A pipeline of one step.")
def tiny(
    data_uri: str,
    model_base: str = "Qwen/Qwen2.5-1.5B-Instruct",
    train_unfreeze_rank_ratio: float = 0.25,
    train_num_epochs: int = 3,
    promote_model_name: str = "continual-model",
) -> None:
    """Say where the data are."""
    say(text=data_uri)


@pytest.fixture(scope="session")
def pipeline() -> BaseComponent:
    """A pipeline with the parameters that names are made of."""
    return tiny


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small pipeline as YAML."""
    file = tmp_path_factory.mktemp("dist") / "osft-tiny.yaml"
    Compiler().compile(tiny, str(file))
    return file.read_text()


@pytest.fixture
def pipeline_file(tmp_path: Path, compiled: str) -> Path:
    """The small pipeline, in a file that a test may change."""
    file = tmp_path / "osft-tiny.yaml"
    file.write_text(compiled)
    return file


@pytest.fixture
def make_kfp(tmp_path: Path) -> Iterator[Callable[..., KfpServer]]:
    """Start a server; with ``tls`` its authority is in ``tls/ca.crt`` of the test's folder."""
    servers: list[KfpServer] = []

    def make(*, tls: bool = False, token: str | None = TOKEN, api: Api | None = None) -> KfpServer:
        context = make_tls(tmp_path / "tls")[0] if tls else None
        servers.append(KfpServer(api or Api(), token=token, tls=context))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def kfp(make_kfp: Callable[..., KfpServer]) -> KfpServer:
    """A server without TLS."""
    return make_kfp()


@pytest.fixture
def connect() -> Callable[[KfpServer], PipelineServer]:
    """Connect to a server, with no wait between two tries."""

    def connect_to(kfp: KfpServer) -> PipelineServer:
        connection = Connection(host=kfp.host, token=kfp.token, project="my-project")
        return PipelineServer(connection, Transport(connection, AT_ONCE))

    return connect_to
