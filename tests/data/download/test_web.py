import base64
import gzip
import hashlib
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import orjson
import pytest

from osft.data.download import fetching
from osft.data.download.download import download_dataset
from osft.data.download.links import check_url, public_uri, redirect_is_allowed
from osft.data.download.web import WebSource
from osft.errors import ConfigError, DataError, DownloadError
from tests.data.download.http_server import Answer, Server, answer, cut, file, ok, self_signed, status

LINES = b'{"a": 1}\n{"a": 2}\n'
MANY_LINES = b"".join(b'{"row": %d}\n' % number for number in range(100_000))
SHA256 = base64.b64encode(hashlib.sha256(LINES).digest()).decode()
MD5 = base64.b64encode(hashlib.md5(LINES, usedforsecurity=False).digest()).decode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.001)
    server = Server()
    yield server
    server.stop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".osft-download.lock")


def test_a_file_comes_with_what_the_server_says_of_it_and_without_its_query(tmp_path: Path, server: Server) -> None:
    changed = "Sat, 01 Nov 2025 00:00:00 GMT"
    server.answers["/a.jsonl"] = [ok(LINES, ETag='"1"', Last_Modified=changed)]

    report = download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert (report.uri, report.etag, report.last_modified) == (f"{server.url}/a.jsonl", '"1"', changed)
    assert (report.files[0].name, report.files[0].size_bytes) == ("a.jsonl", len(LINES))
    assert (report.files[0].sha256, report.files[0].first_line, report.files[0].lines) == (report.sha256, 1, 2)
    assert b"secret" not in (tmp_path / "out/source.json").read_bytes()


def test_only_get_is_asked_since_presigned_links_answer_nothing_else(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [file(LINES, '"1"', after=5), file(LINES, '"1"')]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert [method for method, _, _ in server.requests] == ["GET"] * 3


@pytest.mark.parametrize("failure", [status(503), status(500), status(429), cut(LINES, 5)])
def test_a_transient_failure_is_tried_again(tmp_path: Path, server: Server, failure: Answer) -> None:
    server.answers["/a.jsonl"] = [failure, failure, ok(LINES)]

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert report.rows == 2
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert server.paths == ["/a.jsonl"] * 3


def test_a_connection_that_breaks_twice_goes_on_where_it_broke(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    third = len(MANY_LINES) // 3
    server.answers["/a.jsonl"] = [
        file(MANY_LINES, '"1"', after=third),
        file(MANY_LINES, '"1"', after=third),
        file(MANY_LINES, '"1"'),
    ]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == MANY_LINES
    assert server.ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]
    assert server.requests[1][2]["If-Range"] == '"1"'
    assert f"/a.jsonl: {third} bytes of it are here; asking for the rest" in caplog.text


def test_a_connection_that_always_breaks_gets_through_as_long_as_it_brings_bytes(
    tmp_path: Path, server: Server
) -> None:
    server.answers["/a.jsonl"] = [file(LINES, '"1"', after=1)]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert len(server.requests) == len(LINES) > fetching.ATTEMPTS


DOWNLOAD = """
import sys
from pathlib import Path
from osft.data.download.download import download_dataset
download_dataset(sys.argv[1], Path(sys.argv[2]))
"""


def test_another_process_goes_on_where_one_was_killed(tmp_path: Path, server: Server) -> None:
    half, killed, output = len(MANY_LINES) // 2, Event(), tmp_path / "out"

    def hang(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, MANY_LINES[:half], Content_Length=str(len(MANY_LINES)), ETag='"1"')
        killed.wait(60)

    server.answers["/a.jsonl"] = [hang, file(MANY_LINES, '"1"')]
    command = [sys.executable, "-c", DOWNLOAD, f"{server.url}/a.jsonl", str(output)]
    with subprocess.Popen(command, env={"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        while process.poll() is None and fetched_bytes(output) < half // 2:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.kill()
    killed.set()
    fetched = fetched_bytes(output)

    download_dataset(f"{server.url}/a.jsonl", output)

    assert (output / "rows.jsonl").read_bytes() == MANY_LINES
    assert server.ranges == [None, f"bytes={fetched}-"]
    assert names(output) == ["rows.jsonl", "source.json"]


def fetched_bytes(output: Path) -> int:
    return sum(part.stat().st_size for part in output.glob(".osft-download/*.part"))


def test_a_later_call_goes_on_with_a_link_that_was_signed_anew(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [file(LINES, '"1"', after=5), status(403)]
    with pytest.raises(DownloadError, match="403"):
        download_dataset(f"{server.url}/a.jsonl?id=1&X-Amz-Signature=old", tmp_path / "out")
    server.answers["/a.jsonl"] = [file(LINES, '"1"')]

    download_dataset(f"{server.url}/a.jsonl?id=1&X-Amz-Signature=new", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert server.ranges == [None, "bytes=5-", "bytes=5-"]


def test_bytes_of_another_link_are_not_gone_on_with(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [file(LINES, '"1"', after=5), status(403)]
    with pytest.raises(DownloadError, match="403"):
        download_dataset(f"{server.url}/a.jsonl?id=1", tmp_path / "out")
    server.answers["/a.jsonl"] = [file(LINES.upper(), '"1"')]

    download_dataset(f"{server.url}/a.jsonl?id=2", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES.upper()
    assert server.ranges[-1] is None


NEW = b'{"b": 3}\n{"b": 4}\n'


def part_of(body: bytes, start: int, etag: str, total: int | None = None) -> Answer:
    """Answer with the rest from ``start`` on, whatever was asked for."""
    size = len(body) if total is None else total
    return lambda handler: answer(
        handler, 206, body[start:], ETag=etag, Content_Range=f"bytes {start}-{size - 1}/{size}"
    )


@pytest.mark.parametrize(
    "later",
    [
        # The file changed meanwhile.
        [file(NEW, '"2"')],
        # It changed to a shorter one: the range lies behind its end.
        [status(416), file(NEW, '"2"')],
        # The server does not know ranges.
        [ok(NEW, ETag='"1"')],
        # It goes on with another version, from another place, or with a file of another size.
        [part_of(NEW, 5, '"2"'), file(NEW, '"2"')],
        [part_of(NEW, 3, '"1"'), file(NEW, '"2"')],
        [part_of(NEW, 5, '"1"', total=40), file(NEW, '"2"')],
        # It sends more than it said there is.
        [lambda handler: answer(handler, 206, NEW + NEW, ETag='"1"', Content_Range="bytes 5-17/18"), file(NEW, '"2"')],
    ],
)
def test_bytes_of_two_versions_never_meet(tmp_path: Path, server: Server, later: list[Answer]) -> None:
    server.answers["/a.jsonl"] = [cut(LINES, 5, ETag='"1"'), *later]

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == NEW
    assert server.ranges[1] == "bytes=5-"
    assert report.files[0].size_bytes == len(NEW)


@pytest.mark.parametrize(
    "validator",
    [
        {},
        {"ETag": 'W/"1"'},
        # A file may change twice in the second that it was fetched in.
        {"Last_Modified": "Sat, 01 Nov 2025 00:00:00 GMT", "Date": "Sat, 01 Nov 2025 00:00:01 GMT"},
    ],
)
def test_without_a_strong_validator_the_file_is_fetched_from_its_start(
    tmp_path: Path, server: Server, validator: dict[str, str]
) -> None:
    server.answers["/a.jsonl"] = [cut(LINES, 5, **validator), ok(NEW, **validator)]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == NEW
    assert server.ranges == [None, None]


def test_a_file_without_an_etag_goes_on_under_its_time(tmp_path: Path, server: Server) -> None:
    changed = "Sat, 01 Nov 2025 00:00:00 GMT"
    rest = {"Content_Range": f"bytes 5-{len(LINES) - 1}/{len(LINES)}"}
    server.answers["/a.jsonl"] = [
        cut(LINES, 5, Last_Modified=changed),
        lambda handler: answer(handler, 206, LINES[5:], **rest),
    ]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert server.requests[1][2]["If-Range"] == changed


def test_a_file_that_was_fetched_whole_is_not_fetched_again_after_its_rows_were_refused(
    tmp_path: Path, server: Server
) -> None:
    server.answers["/a.json"] = [file(b"[1,", '"1"')]

    for _ in range(2):
        with pytest.raises(DataError, match="a.json"):
            download_dataset(f"{server.url}/a.json", tmp_path / "out")

    assert server.requests[1][2]["If-None-Match"] == '"1"'
    assert len(list((tmp_path / "out/.osft-download").iterdir())) == 2


def test_a_body_in_chunks_has_no_length_to_check(tmp_path: Path, server: Server) -> None:
    def send_chunks(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(LINES), 3):
            piece = LINES[start : start + 3]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    server.answers["/a.jsonl"] = [send_chunks]

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert report.files[0].size_bytes == len(LINES)


@pytest.mark.parametrize(
    ("code", "mend"),
    [
        (401, "needs no sign-in"),
        (403, "a presigned one has not expired"),
        (404, "Check its spelling"),
        (410, "Check the link"),
        (416, "Check the link"),
    ],
)
def test_what_asking_again_cannot_mend_fails_at_once(tmp_path: Path, server: Server, code: int, mend: str) -> None:
    server.answers["/a.jsonl"] = [status(code)]

    with pytest.raises(DownloadError, match=f"/a.jsonl: the server answers {code}.*{mend}") as caught:
        download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert server.paths == ["/a.jsonl"]
    assert "secret" not in str(caught.value)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (status(503), "the server answers 503. Try again later"),
        (cut(LINES, 5), "the connection failed"),
        (part_of(LINES, 5, '"1"'), "the server went on with another file"),
    ],
)
def test_a_failure_that_lasts_is_reported_in_the_end(
    tmp_path: Path, server: Server, failure: Answer, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/a.jsonl"] = [failure]

    with pytest.raises(DownloadError, match=message):
        download_dataset(f"{server.url}/a.jsonl?signature=secret", tmp_path / "out")

    assert f"Attempt {fetching.ATTEMPTS - 1} failed" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_asks_for_patience_gets_it_within_bounds(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "LONGEST_WAIT_SECONDS", 0.12)
    server.answers["/a.jsonl"] = [status(429, Retry_After="3600"), ok(LINES)]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert "Attempt 1 failed; the next is in 0.1 s" in caplog.text


@pytest.mark.parametrize(
    ("headers", "algorithm"),
    [
        ({"Repr_Digest": "sha-256=:" + "A" * 43 + "=:"}, "sha256"),
        ({"Digest": "md5=abc, SHA-256=" + "A" * 43 + "="}, "sha256"),
        ({"Content_MD5": "A" * 22 + "=="}, "md5"),
    ],
)
def test_bytes_that_are_not_those_of_the_checksum_are_refused_and_dropped(
    tmp_path: Path, server: Server, headers: dict[str, str], algorithm: str
) -> None:
    server.answers["/a.jsonl"] = [ok(LINES, **headers)]
    found = hashlib.new(algorithm, LINES).hexdigest()

    with pytest.raises(
        DownloadError, match=f"the {algorithm} of what arrived is {found}, but the source says 0+\\. Try"
    ):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert names(tmp_path / "out") == []


def test_a_checksum_of_the_whole_file_is_checked_after_going_on(tmp_path: Path, server: Server) -> None:
    digests = {"Repr_Digest": f"sha-256=:{SHA256}:", "Content_MD5": MD5}
    server.answers["/a.jsonl"] = [file(LINES, '"1"', after=5, **digests), file(LINES, '"1"')]

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert server.ranges == [None, "bytes=5-"]
    assert report.files[0].sha256 == hashlib.sha256(LINES).hexdigest()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_is_packed_on_the_way_is_unpacked_once(tmp_path: Path, server: Server, name: str) -> None:
    server.answers[f"/{name}"] = [ok(gzip.compress(LINES), Content_Encoding="gzip")]

    download_dataset(f"{server.url}/{name}", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES


def test_a_packing_that_is_not_known_is_refused(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [ok(LINES, Content_Encoding="br")]

    with pytest.raises(DownloadError, match="the server packs the file as 'br'. Store it unpacked"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    "validator", [{"ETag": '"1"'}, {"ETag": 'W/"1"'}, {"Last_Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}]
)
def test_asked_again_for_an_unchanged_file_nothing_is_fetched_or_written(
    tmp_path: Path, server: Server, validator: dict[str, str]
) -> None:
    knows_conditions = "ETag" in validator
    server.answers["/a.jsonl"] = [ok(LINES, **validator), status(304) if knows_conditions else ok(LINES, **validator)]
    first = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")
    before = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").iterdir()]

    second = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    after = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").iterdir()]
    assert (first.unchanged, second.unchanged) == (False, True)
    assert (second.sha256, second.files) == (first.sha256, first.files)
    assert before == after
    assert server.requests[1][2].get("If-None-Match") == validator.get("ETag")


def test_a_server_without_conditions_still_tells_by_the_etag_that_a_file_is_unchanged(
    tmp_path: Path, server: Server
) -> None:
    server.answers["/a.jsonl"] = [ok(LINES, ETag='"1"')]
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert download_dataset(f"{server.url}/a.jsonl", tmp_path / "out").unchanged


@pytest.mark.parametrize("first", [{"ETag": '"1"'}, {"Last_Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, {}])
def test_a_file_that_changed_is_fetched_again(tmp_path: Path, server: Server, first: dict[str, str]) -> None:
    server.answers["/a.jsonl"] = [ok(LINES, **first), file(NEW, '"2"')]
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    report = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert not report.unchanged
    assert (tmp_path / "out/rows.jsonl").read_bytes() == NEW
    assert orjson.loads((tmp_path / "out/source.json").read_bytes())["etag"] == '"2"'


def test_rows_of_before_stay_when_a_changed_file_cannot_be_fetched(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [ok(LINES, ETag='"1"'), ok(NEW, ETag='"2"'), status(403)]
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    with pytest.raises(DownloadError, match="403"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert orjson.loads((tmp_path / "out/source.json").read_bytes())["etag"] == '"1"'


def test_a_redirect_on_this_machine_is_followed(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, Location="/b.jsonl")]
    server.answers["/b.jsonl"] = [ok(LINES)]

    assert download_dataset(f"{server.url}/a.jsonl", tmp_path / "out").rows == 2


def test_a_redirect_to_an_unencrypted_host_is_refused(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, Location="http://example.com/a.jsonl")]

    with pytest.raises(DownloadError, match="redirects to a link that is not https"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")


def test_a_redirect_to_no_link_fails_at_once(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, Location="http://127.0.0.1:port/")]

    with pytest.raises(DownloadError, match="this is no link, or the server redirects to one"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert server.paths == ["/a.jsonl"]


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tmp_path: Path) -> None:
    server = Server(tls=self_signed(tmp_path))

    with pytest.raises(DownloadError, match="the server's certificate is not trusted. Name its CA file in SSL_CERT_FI"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    server.stop()
    assert server.requests == []


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "http://127.0.0.1/x", False),
        ("https://a.org/x", "ftp://a.org/x", False),
        ("http://127.0.0.1/x", "http://[::1]/x", True),
        ("http://localhost/x", "https://a.org/x", True),
        ("https://a.org/x", "/y", True),
        ("https://a.org/x", "http:/y", False),
        ("https://a.org/x", "https://[::1/y", False),
    ],
)
def test_a_redirect_never_loses_encryption(source: str, target: str, allowed: bool) -> None:
    assert redirect_is_allowed(source, target) is allowed


def test_a_link_without_a_known_suffix_is_refused_before_it_is_asked_for(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ConfigError, match="the format is not known by its suffix"):
        download_dataset(f"{server.url}/a", tmp_path / "out")

    assert server.requests == []


def test_what_is_stored_of_a_web_link_has_no_query() -> None:
    assert public_uri("HTTPS://host/rows.jsonl?X-Amz-Signature=secret#x") == "https://host/rows.jsonl"
    assert public_uri("s3://bucket/what?.jsonl") == "s3://bucket/what?.jsonl"
    assert public_uri(" https://user:secret@host/a?b ") == "https://host/a"
    assert "secret" not in repr(WebSource(url="https://host/rows.jsonl?secret"))


@pytest.mark.parametrize(
    "uri", ["https:/h/x?s=hunter2", "'https://h/x?s=hunter2'", "//u:hunter2@h/x", "https://[::1/hunter2"]
)
def test_what_only_looks_like_a_link_is_not_repeated(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        download_dataset(uri, tmp_path / "out")

    assert "hunter2" not in str(caught.value) + public_uri(uri)


@pytest.mark.parametrize("place", ["host:port", "host:99999", "a" * 64 + ".org", "host\0", "host\n"])
def test_a_host_or_port_that_cannot_be_read_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="the dataset URI cannot be read. Check its host, its port"):
        check_url(f"https://{place}/a.jsonl")


def test_links_whose_queries_differ_in_one_byte_name_different_files() -> None:
    links = [WebSource(url=f"https://host/a.jsonl?f=%{byte}&X-Amz-Date=1") for byte in ("E8", "E9")]

    assert [link.identity for link in links] == ["https://host/a.jsonl?f=%E8", "https://host/a.jsonl?f=%E9"]


def test_white_space_around_a_link_is_no_part_of_it(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [ok(LINES)]

    assert download_dataset(f" {server.url}/a.jsonl\n", tmp_path / "out").uri == f"{server.url}/a.jsonl"


def test_control_characters_in_a_name_are_escaped(tmp_path: Path, server: Server) -> None:
    server.answers["/a%0ab.jsonl"] = [ok(LINES)]

    assert download_dataset(f"{server.url}/a%0ab.jsonl", tmp_path / "out").files[0].name == "a\\nb.jsonl"


@pytest.mark.parametrize("code", [202, 204, 300, 302, 304])
def test_an_answer_that_is_not_the_file_is_no_file(tmp_path: Path, server: Server, code: int) -> None:
    server.answers["/a.jsonl"] = [status(code)]

    with pytest.raises(DownloadError, match=f"the server answers {code}"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert server.paths == ["/a.jsonl"]


def test_a_redirect_by_another_header_than_location_is_refused(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [status(302, URI=f"{server.url}/b.jsonl")]
    server.answers["/b.jsonl"] = [ok(LINES)]

    with pytest.raises(DownloadError, match="the server answers 302 and redirects to a link that is not https, or to"):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert server.paths == ["/a.jsonl"]


OLD_TIME, OTHER_OLD_TIME = "Sat, 01 Nov 2025 00:00:00 GMT", "Fri, 31 Oct 2025 00:00:00 GMT"
NEAR_TIME = {"Last_Modified": OLD_TIME, "Date": "Sat, 01 Nov 2025 00:00:59 GMT"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ok(LINES, ETag='"1"'), ok(MANY_LINES, ETag='"1"')),
        (ok(LINES, ETag='"1"', Last_Modified=OLD_TIME), ok(LINES, ETag='"1"', Last_Modified=OTHER_OLD_TIME)),
        (ok(LINES, ETag='""'), ok(LINES, ETag='""')),
        (ok(LINES, ETag='"\u00e9"'), ok(LINES, ETag='"\u00e9"')),
        (ok(LINES, Last_Modified=OLD_TIME), ok(LINES, Last_Modified=OTHER_OLD_TIME)),
        (ok(LINES, Last_Modified=OLD_TIME), ok(MANY_LINES, Last_Modified=OLD_TIME)),
        (ok(LINES, **NEAR_TIME), ok(LINES, Last_Modified=OLD_TIME)),
        (ok(LINES), ok(LINES)),
    ],
)
def test_a_file_that_may_have_changed_is_fetched_again(
    tmp_path: Path, server: Server, first: Answer, second: Answer
) -> None:
    server.answers["/a.jsonl"] = [first, second]
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert not download_dataset(f"{server.url}/a.jsonl", tmp_path / "out").unchanged


def test_asking_whether_a_file_changed_reads_no_body(tmp_path: Path, server: Server) -> None:
    asked = Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, b"", Content_Length=str(len(LINES)), ETag='"1"')
        asked.wait(60)

    server.answers["/a.jsonl"] = [ok(LINES, ETag='"1"'), hang]
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    unchanged = download_dataset(f"{server.url}/a.jsonl", tmp_path / "out").unchanged

    asked.set()
    assert unchanged


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Let this process write no file larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_what_was_written_is_gone_on_with(tmp_path: Path, server: Server) -> None:
    server.answers["/a.jsonl"] = [file(MANY_LINES, '"1"')]

    message = r"out: there is no room for .*a.jsonl \(File too large\). Make room"
    with room_for(1_000_000), pytest.raises(DownloadError, match=message):
        download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")
    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert server.ranges == [None, "bytes=1000000-"]
    assert (tmp_path / "out/rows.jsonl").read_bytes() == MANY_LINES


def test_a_large_file_is_told_of_in_the_log(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("osft.data.progress.INTERVAL_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    server.answers["/a.jsonl"] = [ok(MANY_LINES)]

    download_dataset(f"{server.url}/a.jsonl", tmp_path / "out")

    assert "fetched 1.5 of 1.5 MB of a.jsonl" in caplog.text
    assert "downloaded 100000 rows, 1.5 MB" in caplog.text
