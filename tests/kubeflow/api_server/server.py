"""A small Kubernetes API server on loopback: the paths and the JSON that a client of TrainJobs meets.

What it answers with is the work of the other modules of this folder: the store, the schema of the CRD, the controller
that plays jobs and pods, and the faults that a test asks for.
"""

import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from tests.kubeflow.api_server.cluster import Cluster
from tests.kubeflow.api_server.errors import ApiError, forbidden, no_such_path, unauthorized
from tests.kubeflow.api_server.resources import Selection

Object = dict[str, Any]
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[a-z]+))?"
)
VERSIONS = {"": "v1", "trainer.kubeflow.org": "v1alpha1", "apiextensions.k8s.io": "v1"}
RESOURCES = {
    "pods": ("", "Pod"),
    "events": ("", "Event"),
    "trainjobs": ("trainer.kubeflow.org", "TrainJob"),
    "trainingruntimes": ("trainer.kubeflow.org", "TrainingRuntime"),
    "clustertrainingruntimes": ("trainer.kubeflow.org", "ClusterTrainingRuntime"),
    "customresourcedefinitions": ("apiextensions.k8s.io", "CustomResourceDefinition"),
}
CLUSTER_WIDE = ("clustertrainingruntimes", "customresourcedefinitions")
# A real server picks between half an hour and an hour.
WATCH_SECONDS = 1800.0


class Request:
    """One request, taken apart."""

    def __init__(self, method: str, target: str) -> None:
        split = urlsplit(target)
        self.path = split.path
        self.query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        match = PATH.fullmatch(split.path)
        parts = match.groupdict("") if match else {}
        self.resource = parts.get("resource", "")
        self.namespace = unquote(parts.get("namespace", ""))
        self.name = unquote(parts.get("name", ""))
        self.subresource = parts.get("subresource", "")
        self.group = parts.get("group", "")
        known = RESOURCES.get(self.resource)
        self.is_known = known is not None and known[0] == self.group
        self.is_known &= parts.get("version") in ("", VERSIONS.get(self.group))
        self.is_known &= bool(self.namespace) != (self.resource in CLUSTER_WIDE)
        self.verb = self._verb(method)

    @property
    def selection(self) -> Selection:
        """Which objects a list or watch is about."""
        return Selection(
            resource=self.resource,
            namespace=self.namespace,
            labels=self.query.get("labelSelector", ""),
            fields=self.query.get("fieldSelector", ""),
        )

    def _verb(self, method: str) -> str:
        if method == "GET" and not self.name:
            return "watch" if self.query.get("watch") in ("true", "1", "True") else "list"
        return {"GET": "get", "POST": "create", "DELETE": "delete", "PUT": "update", "PATCH": "patch"}[method]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: "ApiServer"

    def do_GET(self) -> None:
        """Answer any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path)
        cluster = self.server.cluster
        cluster.requests.append((request.verb, self.path))
        self.server.closing.wait(cluster.faults.delay_seconds)
        try:
            self._check(request)
            self._answer(request, orjson.loads(body) if body else {})
        except ApiError as error:
            self._send(error.code, error.status, error.headers)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # The client went away, as it may.
            self.close_connection = True

    do_POST = do_DELETE = do_PUT = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def _check(self, request: Request) -> None:
        cluster = self.server.cluster
        cluster.faults.check(request.verb, request.path)
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in (cluster.token, cluster.admin_token):
            raise unauthorized()
        if request.path == "/version":
            return
        if not request.is_known:
            raise no_such_path()
        full = f"{request.resource}/{request.subresource}" if request.subresource else request.resource
        names = (request.verb, request.group, full, request.namespace, request.name)
        if token == cluster.admin_token:
            return
        if full in cluster.faults.without_right or not cluster.rights.allow(*names):
            raise forbidden(cluster.user, request.verb, full, request.namespace, request.name)

    def _answer(self, request: Request, body: Object) -> None:
        cluster = self.server.cluster
        if request.path == "/version":
            self._send(200, {"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
        elif request.verb == "watch":
            self._stream(self._watch_lines(request), "application/json")
        elif request.verb == "list":
            self._send(200, self._list(request))
        elif request.subresource == "log":
            self._stream_log(request)
        elif request.verb == "get":
            self._send(200, cluster.store.get(request.resource, request.namespace, request.name))
        elif request.verb == "create":
            is_dry = request.query.get("dryRun") == "All"
            is_strict = request.query.get("fieldValidation") == "Strict"
            self._send(201, cluster.create_job(request.namespace, body, is_dry=is_dry, is_strict=is_strict))
        elif request.verb == "delete":
            policy = body.get("propagationPolicy") or request.query.get("propagationPolicy") or "Background"
            uid = body.get("preconditions", {}).get("uid", "")
            self._send(200, cluster.delete_job(request.namespace, request.name, policy, uid=uid))

    def _list(self, request: Request) -> Object:
        store = self.server.cluster.store
        group, kind = RESOURCES[request.resource]
        with store.changed:
            version, items = str(store.version), store.select(request.selection)
        api_version = f"{group}/{VERSIONS[group]}" if group else "v1"
        return {
            "kind": f"{kind}List",
            "apiVersion": api_version,
            "metadata": {"resourceVersion": version},
            "items": items,
        }

    def _watch_lines(self, request: Request) -> Iterator[bytes]:
        cluster = self.server.cluster
        limit = cluster.faults.next_of("watch_lines")
        since = request.query.get("resourceVersion", "0") or "0"
        version = int(since)
        if since == "0":
            with cluster.store.changed:
                version = cluster.store.version
                there = cluster.store.select(request.selection)
            yield from (_watch_line("ADDED", thing) for thing in there)
        timeout = float(request.query.get("timeoutSeconds", WATCH_SECONDS))
        is_open = self.server.is_open
        sent = 0
        try:
            for kind, thing in cluster.store.watch(request.selection, version, timeout, is_open):
                if limit is not None and sent >= limit:
                    break
                yield _watch_line(kind, thing)
                sent += 1
                if limit is not None and sent >= limit:
                    break
        except ApiError as error:
            # What has begun as a stream ends with an event that carries the error.
            yield _watch_line("ERROR", error.status)
        if limit is not None:
            cluster.faults.note("watch cut")
            raise ConnectionResetError

    def _stream_log(self, request: Request) -> None:
        cluster = self.server.cluster
        query = request.query
        previous = query.get("previous") in ("true", "True", "1")
        log = cluster.find_log(request.namespace, request.name, previous=previous)
        since = None
        if "sinceTime" in query:
            # The kubelet is asked in whole seconds, whatever the client says.
            since = _whole_second(query["sinceTime"])
        follows = query.get("follow") in ("true", "True", "1")
        lines = log.read(
            since=since,
            tail=int(query["tailLines"]) if "tailLines" in query else None,
            timestamps=query.get("timestamps") in ("true", "True", "1"),
            follow=lambda: follows and self.server.is_open(),
        )
        limit = cluster.faults.next_of("log_bytes")
        self._stream(self._cut(lines, limit), "text/plain")

    def _cut(self, lines: Iterator[bytes], limit: int | None) -> Iterator[bytes]:
        for line in lines:
            if limit is not None and len(line) >= limit:
                yield line[:limit]
                self.server.cluster.faults.note("log cut")
                raise ConnectionResetError
            limit = None if limit is None else limit - len(line)
            yield line

    def _send(self, code: int, thing: Object, headers: dict[str, str] | None = None) -> None:
        body = orjson.dumps(thing)
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, chunks: Iterator[bytes], content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        if not self.server.is_open():
            raise ConnectionResetError
        self.wfile.write(b"0\r\n\r\n")


class ApiServer(ThreadingHTTPServer):
    """Listens on loopback, with TLS; it can be stopped, and another one started on the same port."""

    daemon_threads = True
    allow_reuse_address = True
    # A connection that breaks off in its handshake is the client's affair.
    block_on_close = False

    def __init__(self, cluster: Cluster, port: int = 0) -> None:
        self.cluster = cluster
        self.closing = threading.Event()
        self._connections: set[ssl.SSLSocket] = set()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def is_open(self) -> bool:
        """Return whether the server still serves."""
        return not self.closing.is_set()

    def stop(self) -> None:
        """Close the socket; what is being answered breaks off."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                # The client was faster.
                continue

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands on the connection's own thread, where a slow client keeps nobody waiting."""
        if (limit := self.cluster.faults.next_of("handshakes")) is not None:
            request.recv(limit)
            self.cluster.faults.note("handshake cut")
            return
        try:
            secured = self.cluster.tls.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):
            # A client that does not trust the certificate goes away in the handshake.
            return
        self._connections.add(secured)
        try:
            with secured:
                super().finish_request(secured, client_address)
        finally:
            self._connections.discard(secured)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about connections that break off; anything else is a mistake of this server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _watch_line(kind: str, thing: Object) -> bytes:
    return orjson.dumps({"type": kind, "object": thing}) + b"\n"


def _whole_second(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(microsecond=0)
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"unable to decode sinceTime: {error}") from error
