"""Requests: TLS is verified, what may pass is tried again, and a refusal is one line with the mend."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from osft.errors import ConfigError
from pipeline_server.client import PipelineServer
from pipeline_server.connection import Connection
from pipeline_server.errors import PipelineServerError
from pipeline_server.transport import Transport
from tests.conftest import find_free_port
from tests.pipeline_server.api import Api
from tests.pipeline_server.conftest import AT_ONCE
from tests.pipeline_server.server import TOKEN, Fault, KfpServer

Connect = Callable[[KfpServer], PipelineServer]
Make = Callable[..., KfpServer]


def ask(connection: Connection) -> PipelineServer:
    return PipelineServer(connection, Transport(connection, AT_ONCE))


def test_a_server_whose_authority_is_given_is_trusted(make_kfp: Make, tmp_path: Path) -> None:
    kfp = make_kfp(tls=True)

    server = ask(Connection(host=kfp.host, token=TOKEN, authority_files=(tmp_path / "tls" / "ca.crt",)))

    assert server.namespace is None
    assert kfp.asked("GET", "/healthz") == 1


def test_a_server_whose_authority_is_not_known_is_not_asked_a_second_time(make_kfp: Make) -> None:
    kfp = make_kfp(tls=True)

    with pytest.raises(PipelineServerError, match=r"healthz: no TLS .*CERTIFICATE_VERIFY_FAILED.*KF_PIPELINES_SSL_SA_"):
        ask(Connection(host=kfp.host, token=TOKEN))

    assert kfp.requests == []


def test_a_handshake_that_breaks_off_is_tried_again(make_kfp: Make, tmp_path: Path) -> None:
    kfp = make_kfp(tls=True)
    kfp.handshakes_to_cut = 2

    ask(Connection(host=kfp.host, token=TOKEN, authority_files=(tmp_path / "tls" / "ca.crt",)))

    assert kfp.handshakes_to_cut == 0


def test_a_certificate_for_another_name_is_refused(make_kfp: Make, tmp_path: Path) -> None:
    kfp = make_kfp(tls=True)
    host = kfp.host.replace("127.0.0.1", "localhost")

    with pytest.raises(PipelineServerError, match="no TLS .*Hostname mismatch"):
        ask(Connection(host=host, token=TOKEN, authority_files=(tmp_path / "tls" / "ca.crt",)))


def test_a_file_without_authorities_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")

    with pytest.raises(ConfigError, match=r"ca.crt is no file of authorities .*Give one in PEM"):
        Transport(Connection(host="https://x.example", authority_files=(tmp_path / "ca.crt",)))


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, 0])
def test_what_may_pass_is_tried_again(kfp: KfpServer, connect: Connect, code: int) -> None:
    kfp.faults.append(Fault(code=code, path="/healthz", times=2, headers={"Retry-After": "0"}))

    connect(kfp)

    assert kfp.asked("GET", "/healthz") == 3


def test_each_try_is_told_of(kfp: KfpServer, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    kfp.faults.append(Fault(code=503, path="/healthz"))

    with caplog.at_level(logging.WARNING):
        connect(kfp)

    assert caplog.messages == ["the pipeline server: 503 Service Unavailable; trying again in 0 s"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(code=401, path=""), r"GET .*/healthz: 401 a fault\. Log in again \(oc login\), or renew KF_"),
        (Fault(code=403, path=""), r"403 a fault\. Log in again \(oc login\), as somebody with the role Edit"),
        (Fault(code=403, path="", is_page=True), r"403 Forbidden\. Log in again \(oc login\), as somebody with"),
        (Fault(code=403, path="", is_page=True, text=b"Forbidden (user=me)\n"), r"403 Forbidden \(user=me\)\. Log in"),
        (Fault(code=302, path="", is_page=True, headers={"Location": "/login"}), r"302 sends elsewhere.*Log in again"),
        (Fault(code=200, path="", is_page=True), r"the answer is a page, not the API's\. Log in again"),
        (Fault(code=400, path=""), r"400 a fault\. Mend what it names"),
        (Fault(code=429, path="", times=9), r"429 a fault\. It is busy: try again later"),
        (Fault(code=500, path="", times=9), r"500 a fault\. The server fails.*its pod ds-pipeline-\*"),
        (Fault(code=503, path="", times=9, is_page=True), r"503 Service Unavailable\. On OpenShift that is a name"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_mend(kfp: KfpServer, connect: Connect, fault: Fault, message: str) -> None:
    kfp.faults.append(fault)

    with pytest.raises(PipelineServerError, match=message) as caught:
        connect(kfp)

    assert "\n" not in str(caught.value)
    assert caught.value.status == (None if fault.code == 200 else fault.code)
    assert TOKEN not in str(caught.value)


def test_a_redirect_is_not_followed(kfp: KfpServer, connect: Connect) -> None:
    kfp.faults.append(Fault(code=302, path="/healthz", headers={"Location": "/apis/v2beta1/experiments"}))

    with pytest.raises(PipelineServerError, match="302 sends elsewhere"):
        connect(kfp)

    assert len(kfp.requests) == 1


def test_a_token_that_the_server_does_not_know_is_not_shown(kfp: KfpServer) -> None:
    with pytest.raises(PipelineServerError, match="401 Unauthorized") as caught:
        ask(Connection(host=kfp.host, token="another-secret"))

    assert "another-secret" not in str(caught.value)
    assert "another-secret" not in repr(Connection(host=kfp.host, token="another-secret"))


def test_a_server_of_kfp_1_is_too_old(make_kfp: Make, connect: Connect) -> None:
    with pytest.raises(PipelineServerError, match=r"404 .*So it has no API v2beta1: the server is older than KFP 2\.0"):
        connect(make_kfp(api=Api(is_old=True)))


def test_a_server_that_is_not_there_is_said_so() -> None:
    with pytest.raises(PipelineServerError, match=r"it cannot be reached .*refused.*Is KF_PIPELINES_ENDPOINT right"):
        ask(Connection(host=f"http://127.0.0.1:{find_free_port()}"))


def test_a_name_that_nobody_knows_is_said_so() -> None:
    with pytest.raises(PipelineServerError, match=r"its name is not known\. Is KF_PIPELINES_ENDPOINT right"):
        ask(Connection(host="http://pipelines.invalid"))


def test_a_server_of_several_projects_needs_one(make_kfp: Make) -> None:
    kfp = make_kfp(api=Api(is_multi_user=True))

    with pytest.raises(ConfigError, match="serves several projects. Choose one with oc project"):
        ask(Connection(host=kfp.host, token=TOKEN))
