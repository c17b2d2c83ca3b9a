"""A web server on loopback that misbehaves on request."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from threading import Thread
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send one answer."""
    handler.send_response_only(status)
    said = {"Content_Length": str(len(body)), "Date": handler.date_time_string(), **headers}
    for name, value in said.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def status(code: int, **headers: str) -> Answer:
    """Answer ``code`` and nothing else."""
    return partial(answer, status=code, **headers)


def ok(body: bytes, **headers: str) -> Answer:
    """Answer with the whole ``body``, whatever was asked for."""
    return partial(answer, status=200, body=body, **headers)


def cut(body: bytes, after: int, **headers: str) -> Answer:
    """Promise the whole ``body``, send ``after`` bytes of it and hang up."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, body[:after], Content_Length=str(len(body)), **headers)
        handler.close_connection = True

    return send


def file(body: bytes, etag: str, *, after: int | None = None, **headers: str) -> Answer:
    """Serve ``body`` as a web server does: ranges, conditions, 304 and 416.

    Args:
        body: the file.
        etag: its ETag.
        after: how many bytes to send before hanging up; all if not given.
        headers: what else to send.
    """

    def send(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers
        if asked["If-None-Match"] == etag:
            answer(handler, 304, ETag=etag)
            return
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-")) if asked["Range"] else 0
        if asked["If-Range"] not in (None, etag):
            start = 0
        if start and start >= len(body):
            answer(handler, 416, Content_Range=f"bytes */{len(body)}")
            return
        said = {"ETag": etag, "Content_Length": str(len(body) - start), **headers}
        if start:
            said["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        answer(handler, 206 if start else 200, body[start:] if after is None else body[start : start + after], **said)
        handler.close_connection = after is not None

    return send


def forward(url: str, *, after: int | None = None, without: str = "", query: str = "", **headers: str) -> Answer:
    """Give the answer of the server at ``url``.

    Args:
        url: of that server.
        after: how many bytes to send before hanging up; all if not given.
        without: a header of the request that is not passed on.
        query: what is added to the request.
        headers: what to say instead of what that server says.
    """

    def send(handler: BaseHTTPRequestHandler) -> None:
        connection = HTTPConnection(url.removeprefix("http://"))
        asked = {name: value for name, value in handler.headers.items() if name != without}
        connection.request(handler.command, handler.path + query, headers=asked)
        response = connection.getresponse()
        body = response.read()
        said = {name.replace("-", "_").title(): value for name, value in response.getheaders()} | headers
        answer(handler, response.status, body if after is None else body[:after], **said)
        handler.close_connection = True
        connection.close()

    return send


def self_signed(folder: Path) -> SSLContext:
    """Return what serves https with a certificate of 127.0.0.1 that no authority knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    for_ever = builder.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2120, 1, 1))
    certificate = for_ever.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    unencrypted = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.pem").write_bytes(key.private_bytes(pem, *unencrypted) + certificate.public_bytes(pem))
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    return context


class Server:
    """Gives each path's answers in turn, the last one for ever."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.otherwise: Answer = status(404, X_Error_Code="EntryNotFound")
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for _, path, _ in self.requests]

    @property
    def ranges(self) -> list[str | None]:
        """The Range of each request."""
        return [headers.get("Range") for _, _, headers in self.requests]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.requests.append((self.command, path, dict(self.headers)))
                answers = server.answers.get(path, [server.otherwise])
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        return Handler
