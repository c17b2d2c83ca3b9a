"""A model registry on loopback: HTTP or TLS, a token, and faults on request."""

import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from tests.registration.api import Api, Refusal

TOKEN = "sha256~a-token-that-nobody-may-see"  # noqa: S105 a test's
LOGIN_PAGE = b"<html><body>Log in with OpenShift</body></html>"


@dataclass(kw_only=True)
class Fault:
    """The next requests of a kind that go wrong."""

    code: int
    """Status of the answer; 0 hangs up without one."""

    path: str
    """How the path ends."""

    method: str = "GET"
    times: int = 1
    is_done: bool = False
    """Whether the server does what it is asked before it fails."""

    hangs: bool = False
    """Whether the server keeps quiet until the client is gone."""

    page: bytes | None = None
    """A page that something in the registry's place answers with."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    # An answer is two writes; the second must not wait for the first to be acknowledged.
    disable_nagle_algorithm = True
    server: "RegistryServer"

    def do_GET(self) -> None:
        """Answer any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {split.path}")
        fault = self.server.next_fault(self.command, split.path)
        if meeting := self.server.meetings.get(f"{self.command} {split.path.rpartition('/')[2]}"):
            meeting.wait(timeout=60)
        if fault and not fault.is_done:
            return self._fail(fault)
        try:
            self._check_token()
            code, answer = self.server.api.answer(self.command, split.path, dict(parse_qsl(split.query)), body)
        except LookupError:
            return self._send(404, b"404 page not found\n", "text/plain; charset=utf-8")
        except Refusal as refusal:
            text = {"code": "", "message": refusal.message}
            return self._send(refusal.code, orjson.dumps(refusal.message if self.server.api.is_old else text))
        return self._fail(fault) if fault else self._send(code, orjson.dumps(answer))

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def _check_token(self) -> None:
        given = self.headers.get("Authorization")
        self.server.tokens.append(given)
        if self.server.token and given != f"Bearer {self.server.token}":
            raise Refusal(401, "Unauthorized")

    def _fail(self, fault: Fault) -> None:
        if fault.hangs:
            self.server.is_hanging.set()
            self.connection.recv(1)
            self.close_connection = True
        elif fault.code == 0:
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault.page is not None:
            self._send(fault.code, fault.page, "text/html")
        else:
            self._send(fault.code, orjson.dumps({"code": "", "message": "a fault"}))

    def _send(self, code: int, content: bytes, kind: str = "application/json; charset=UTF-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class RegistryServer(ThreadingHTTPServer):
    """Listens on loopback until it is closed.

    Requests of ``meetings``, by method and end of the path, wait for each other.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, api: Api, *, token: str | None, tls: ssl.SSLContext | None) -> None:
        self.api = api
        self.token = token
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.faults: list[Fault] = []
        self.is_hanging = threading.Event()
        self.meetings: dict[str, threading.Barrier] = {}
        self._lock = threading.Lock()
        self._tls = tls
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}"

    @property
    def writes(self) -> list[str]:
        """What was asked to be created, by the ends of the paths."""
        return [one.rpartition("/")[2] for one in self.requests if one.startswith("POST ")]

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Return what goes wrong with this request, if anything."""
        with self._lock:
            for fault in self.faults:
                if fault.times and path.endswith(fault.path) and fault.method == method:
                    fault.times -= 1
                    return fault
        return None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands on the connection's own thread."""
        if self._tls:
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError:
                # A client that does not trust the certificate goes away in the handshake.
                return
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about connections that break off; anything else is a mistake of this server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving(
    api: Api | None = None, *, token: str | None = TOKEN, tls: ssl.SSLContext | None = None
) -> Iterator[RegistryServer]:
    """Serve a registry until the end of the block."""
    server = RegistryServer(api or Api(), token=token, tls=tls)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
