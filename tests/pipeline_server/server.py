"""A pipeline server on loopback: HTTP or TLS, a token, the proxy before it, and faults on request.

It also answers the two questions that are put to the cluster itself: which routes a project has, and where RHOAI's
dashboard is.
"""

import email.parser
import ssl
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from tests.kubeflow.api_server.tls import make_server_context
from tests.pipeline_server.api import Api, Refusal

TOKEN = "sha256~a-token-that-nobody-may-see"  # noqa: S105 a test's
LOGIN_PAGE = b"<html><body>Log in with OpenShift</body></html>"


@dataclass(kw_only=True)
class Fault:
    """The next requests of a kind that go wrong."""

    code: int
    """Status of the answer; 0 hangs up without one."""

    path: str
    method: str = ""
    times: int = 1
    is_done: bool = False
    """Whether the server does what it is asked before it fails."""

    is_page: bool = False
    """Whether something in the server's place answers, with a page."""

    text: bytes = LOGIN_PAGE
    """What the page says."""

    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: "KfpServer"

    def do_GET(self) -> None:
        """Answer any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.server.requests.append(f"{self.command} {split.path}")
        fault = self.server.next_fault(self.command, split.path)
        if fault and not fault.is_done:
            return self._fail(fault)
        try:
            self._check_token()
            answer = self._answer(split.path, query, body)
        except Refusal as refusal:
            return self._send(refusal.code, orjson.dumps(refusal.body))
        if fault:
            return self._fail(fault)
        return self._send(200, orjson.dumps(answer))

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def _check_token(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if self.server.token and (scheme.lower(), token) != ("bearer", self.server.token):
            raise Refusal(401, "Unauthorized")

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> Any:
        if path.startswith("/apis/route.openshift.io/"):
            return {"items": self.server.routes}
        if path == "/apis/console.openshift.io/v1/consolelinks/rhodslink":
            if not self.server.dashboard:
                raise Refusal(404, "not found")
            return {"spec": {"href": f"{self.server.dashboard}/"}}
        kind = self.headers.get("Content-Type", "")
        return self.server.api.answer(self.command, path, query, _file_of(kind, body) if "multipart" in kind else body)

    def _fail(self, fault: Fault) -> None:
        if fault.code == 0:
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault.is_page:
            self._send(fault.code, fault.text, {"Content-Type": "text/html", **fault.headers})
        else:
            self._send(fault.code, orjson.dumps(Refusal(fault.code, "a fault").body), fault.headers)

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        of_all = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in {**of_all, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class KfpServer(ThreadingHTTPServer):
    """Listens on loopback until it is stopped."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, api: Api, *, token: str | None, tls: ssl.SSLContext | None) -> None:
        self.api = api
        self.token = token
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.routes: list[dict[str, Any]] = []
        self.dashboard = ""
        self.handshakes_to_cut = 0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self._tls = tls
        self.host = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def asked(self, method: str, ending: str) -> int:
        """Return how often a method and path were asked for."""
        return sum(one.startswith(f"{method} ") and one.endswith(ending) for one in self.requests)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Return what goes wrong with this request, if anything."""
        with self._lock:
            for fault in self.faults:
                if fault.times and path.endswith(fault.path) and fault.method in ("", method):
                    fault.times -= 1
                    return fault
        return None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands on the connection's own thread."""
        if self._tls and self.handshakes_to_cut:
            self.handshakes_to_cut -= 1
            return
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

    def stop(self) -> None:
        """Close the socket."""
        self.shutdown()
        self.server_close()


def make_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what serves TLS on loopback, and the file of the authority that a client must know."""
    folder.mkdir()
    context, authority = make_server_context(folder)
    file = folder / "ca.crt"
    file.write_bytes(authority)
    return context, file


def _file_of(content_type: str, body: bytes) -> bytes:
    """Return the file in an upload.

    Raises:
        Refusal: if there is none.
    """
    message = email.parser.BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    for part in message.get_payload():
        if not isinstance(part, str) and part.get_param("name", header="content-disposition") == "uploadfile":
            content = part.get_payload(decode=True)
            if isinstance(content, bytes):
                return content
    raise Refusal(400, "Failed to read pipeline from file", is_upload=True)
