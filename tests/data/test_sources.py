import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest

from osft.data import fetching
from osft.data.sources import download_dataset
from osft.data.web import public_uri, redirect_is_allowed
from osft.errors import ConfigError, DataError, DownloadError, MissingPathError, WorkspaceError
from osft.workspace import Workspace

LINES = b'{"a": 1}\n{"a": 2}\n'
Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send one whole answer."""
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Promise more than is sent, and hang up."""
    answer(handler, 200, LINES[:5], Content_Length="1000")
    handler.close_connection = True


class Server:
    """An HTTP server on loopback that gives each path's answers in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.requests.append(path)
                answers = server.answers.get(path, [status(404, X_Error_Code="EntryNotFound")])
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.01)
    server = Server()
    yield server
    server.stop()


def ok(body: bytes = LINES, **headers: str) -> Answer:
    return partial(answer, status=200, body=body, **headers)


def status(code: int, **headers: str) -> Answer:
    return partial(answer, status=code, **headers)


def test_rows_and_their_source_are_written(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)

    report = download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    saved = orjson.loads((tmp_path / "out/source.json").read_bytes())
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert (report.rows, report.size_bytes, report.sha256) == (2, len(LINES), hashlib.sha256(LINES).hexdigest())
    assert (saved["rows"], saved["sha256"]) == (2, report.sha256)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rows.jsonl", "source.json"]


def test_a_relative_path_is_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    monkeypatch.chdir(tmp_path)

    assert download_dataset("data.jsonl", tmp_path / "out").rows == 2


def test_a_folder_gives_its_known_files_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    for name, text in {
        "c.jsonl": "3",
        "a.jsonl": "1",
        "b/x.json": "2",
        "readme.txt": "x",
        ".hidden.jsonl": "x",
    }.items():
        (folder / name).write_text(text)

    report = download_dataset(str(folder), tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == b"1\n2\n3\n"
    assert [file.name for file in report.files] == ["a.jsonl", "b/x.json", "c.jsonl"]


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in the folder has a known suffix\. Allowed are \.jsonl"):
        download_dataset(str(tmp_path), tmp_path / "out")


def test_a_workspace_path_is_found_inside_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_bytes(LINES)
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path))

    given = download_dataset("pvc://data/rows.jsonl", tmp_path / "a", workspace=Workspace(tmp_path))
    from_environment = download_dataset("pvc://data", tmp_path / "b")

    assert given.sha256 == from_environment.sha256
    assert given.uri == "pvc://data/rows.jsonl"


@pytest.mark.parametrize("path", ["../outside.jsonl", "/etc", "link.jsonl", "folder"])
def test_a_workspace_path_may_not_leave_the_workspace(tmp_path: Path, path: str) -> None:
    root = tmp_path / "workspace"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside.jsonl").write_bytes(LINES)
    for link in ("link.jsonl", "folder/link.jsonl"):
        (root / link).symlink_to(tmp_path / "outside.jsonl")

    with pytest.raises(WorkspaceError, match="leaves the workspace"):
        download_dataset(f"pvc://{path}", tmp_path / "out", workspace=Workspace(root))


@pytest.mark.parametrize("uri", ["/no/such/file.jsonl", "pvc://none.jsonl"])
def test_a_missing_path_is_named(tmp_path: Path, uri: str) -> None:
    with pytest.raises(MissingPathError, match=r"(file|none)\.jsonl.*(no such file|not exist)"):
        download_dataset(uri, tmp_path / "out", workspace=Workspace(tmp_path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the dataset URI is empty"),
        ("file:///etc/passwd", "may not start with file:; allowed are pvc://, hf://, https://, s3://"),
        ("FILE:/etc/passwd", "may not start with file:"),
        ("ftp://host/a.jsonl", "may not start with ftp:"),
        ("http://example.com/a.jsonl", "http is not encrypted and allowed on loopback only"),
        ("https:///a.jsonl", "no host name"),
        ("https://example.com/a", "the format is not known by its suffix"),
        ("s3:///key", "names no bucket"),
        ("hf://", r"allowed is hf://name\[:config\]\[@revision\]"),
        ("hf://a/b/c", "is no dataset of a hub"),
    ],
)
def test_a_bad_uri_is_refused(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        download_dataset(uri, tmp_path / "out")


@pytest.mark.parametrize("uri", ["https://user:secret@example.com/a.jsonl", "s3://key:secret@bucket/a.jsonl"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="carries credentials before '@'") as caught:
        download_dataset(uri, tmp_path / "out")

    assert "secret" not in str(caught.value)


def test_a_web_file_comes_with_its_etag_and_without_its_query(tmp_path: Path, server: Server) -> None:
    changed = "Sat, 01 Nov 2025 00:00:00 GMT"
    server.answers["/a.jsonl"] = [ok(ETag='"1"', Last_Modified=changed)]

    report = download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert (report.uri, report.etag, report.last_modified) == (f"{server.url}/a.jsonl", '"1"', changed)
    assert b"secret" not in (tmp_path / "out/source.json").read_bytes()


@pytest.mark.parametrize("failure", [status(503), status(500), status(429), cut])
def test_a_transient_failure_is_tried_again(tmp_path: Path, server: Server, failure: Answer) -> None:
    server.answers["/a.jsonl"] = [failure, failure, ok()]

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert report.rows == 2
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert server.requests == ["/a.jsonl"] * 3


@pytest.mark.parametrize(
    ("code", "mend"),
    [(401, "needs no sign-in"), (403, "a presigned one has not expired"), (404, "Check its spelling")],
)
def test_what_asking_again_cannot_mend_fails_at_once(tmp_path: Path, server: Server, code: int, mend: str) -> None:
    server.answers["/a.jsonl"] = [status(code)]

    with pytest.raises(DownloadError, match=f"/a.jsonl: the server answers {code}.*{mend}") as caught:
        download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert server.requests == ["/a.jsonl"]
    assert "secret" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "message"), [(status(503), "the server answers 503. Try again later"), (cut, "the connection failed")]
)
def test_a_failure_that_lasts_is_reported_in_the_end(
    tmp_path: Path, server: Server, failure: Answer, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/a.jsonl"] = [failure]

    with pytest.raises(DownloadError, match=message):
        download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert len(server.requests) == fetching.ATTEMPTS
    assert "attempt 4 failed" in caplog.text
    assert "secret" not in caplog.text
    assert list((tmp_path / "out").iterdir()) == []


def test_a_redirect_on_this_machine_is_followed(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, Location="/b.jsonl")]
    server.answers["/b.jsonl"] = [ok()]

    assert download_dataset(f"{server.url}/a.jsonl", tmp_path / "out").rows == 2


def test_a_redirect_to_an_unencrypted_host_is_refused(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, Location="http://example.com/a.jsonl")]

    with pytest.raises(DownloadError, match="redirects to a link that is not https"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "http://127.0.0.1/x", False),
        ("https://a.org/x", "ftp://a.org/x", False),
        ("http://127.0.0.1/x", "http://[::1]/x", True),
        ("http://localhost/x", "https://a.org/x", True),
    ],
)
def test_a_redirect_never_loses_encryption(source: str, target: str, allowed: bool) -> None:
    assert redirect_is_allowed(source, target) is allowed


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve_hub_dataset(server: Server) -> None:
    """Answer as a hub does that has the dataset osft/elements with one file."""
    siblings = [{"rfilename": "train.jsonl"}]
    info = orjson.dumps({"id": "osft/elements", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
    tree = orjson.dumps([{"type": "file", "path": "train.jsonl", "size": len(LINES), "oid": "a" * 40}])
    json = {"Content_Type": "application/json"}
    root = "/api/datasets/osft/elements"
    for path in (root, f"{root}/revision/main", f"{root}/revision/v1", f"{root}/revision/{COMMIT}"):
        server.answers[path] = [ok(info, **json)]
    for path in (f"{root}/tree/{COMMIT}", f"{root}/tree/main", f"{root}/paths-info/{COMMIT}"):
        server.answers[path] = [ok(tree, **json)]
    headers = {"ETag": '"' + "a" * 40 + '"', "X_Repo_Commit": COMMIT}
    server.answers[f"/datasets/osft/elements/resolve/{COMMIT}/train.jsonl"] = [ok(**headers)]


def download_in_a_process_of_its_own(uri: str, output: Path, server: Server) -> subprocess.CompletedProcess[str]:
    """Run with the hub's address, which the hub's client reads once, as it is imported."""
    program = """
        import sys
        from pathlib import Path
        from osft.data.sources import download_dataset
        from osft.errors import OsftError
        try:
            download_dataset(sys.argv[1], Path(sys.argv[2]))
        except OsftError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    """
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(output.parent / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", textwrap.dedent(program), uri, str(output)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_hub_dataset_is_loaded_at_the_commit_of_its_revision(tmp_path: Path, server: Server) -> None:
    serve_hub_dataset(server)

    result = download_in_a_process_of_its_own("hf://osft/elements@v1", tmp_path / "out", server)

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES.replace(b" ", b"")
    assert orjson.loads((tmp_path / "out/source.json").read_bytes())["revision"] == COMMIT


def test_a_hub_dataset_that_is_not_there_is_named(tmp_path: Path, server: Server) -> None:
    result = download_in_a_process_of_its_own("hf://osft/nothing", tmp_path / "out", server)

    assert result.returncode == 1
    assert "DownloadError: hf://osft/nothing: the hub answers 404. Check the name and the revision" in result.stderr


@pytest.mark.parametrize("output", [".", "inside"])
def test_an_output_in_the_source_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")

    with pytest.raises(ConfigError, match="lies in the source"):
        download_dataset(str(tmp_path), tmp_path / output)

    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"


def test_what_is_stored_of_a_web_link_has_no_query() -> None:
    assert public_uri("HTTPS://host/rows.jsonl?X-Amz-Signature=secret#x") == "https://host/rows.jsonl"
    assert public_uri("s3://bucket/what?.jsonl") == "s3://bucket/what?.jsonl"
