import base64
import gzip
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from osft.data.download import fetching
from osft.data.download.download import download_dataset
from osft.errors import ConfigError, DataError, DownloadError
from tests.data.download.http_server import Answer, Server, answer, forward, self_signed, status

boto3 = pytest.importorskip("boto3")
s3 = pytest.importorskip("osft.data.download.s3", reason="s3fs is not installed")
moto_server = pytest.importorskip("moto.server")

LINES = b'{"a": 1}\n{"a": 2}\n'
MANY_LINES = b"".join(b'{"row": %d}\n' % number for number in range(400_000))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on loopback."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def client(endpoint: str) -> Any:
    """A client of it, which has made one bucket."""
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="rows")
    objects = {
        "a.jsonl": LINES,
        "many.jsonl": MANY_LINES,
        "set/b.jsonl": b"2\n",
        "set/a.jsonl": b"1\n",
        "set/deep/c.json": b"[3]",
        "set/empty.jsonl": b"",
        "set/read.me": b"x",
        "text/read.me": b"x",
        "odd/[1].jsonl": b"4\n",
        "both/x.jsonl": b"5\n",
        "both/x.jsonl/part-0.jsonl": b"6\n",
        "hidden/.a.jsonl": b"8\n",
        "hidden/.ipynb_checkpoints/a.jsonl": b"x",
        "hidden/b.jsonl": b"7\n",
        "escape/\x1b[2J.json": b"[",
    }
    for key, body in objects.items():
        client.put_object(Bucket="rows", Key=key, Body=body)
    return client


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, endpoint: str, client: Any) -> None:
    """The environment that a data science connection gives a pod."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_S3_ENDPOINT", endpoint)
    monkeypatch.delenv("AWS_S3_BUCKET", raising=False)
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Iterator[Server]:
    """What stands between the client and the store, and misbehaves on request."""
    server = Server()
    server.otherwise = forward(endpoint)
    monkeypatch.setenv("AWS_S3_ENDPOINT", server.url)
    yield server
    server.stop()


def test_an_object_comes_with_what_the_store_says_of_it_and_without_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert report.uri == "s3://rows/a.jsonl"
    assert report.etag == f'"{hashlib.md5(LINES, usedforsecurity=False).hexdigest()}"'
    assert report.last_modified is not None
    assert report.files[0].sha256 == hashlib.sha256(LINES).hexdigest()
    assert b"secret" not in (tmp_path / "out/source.json").read_bytes()
    assert "secret" not in caplog.text


def test_a_prefix_gives_its_known_objects_in_the_order_of_keys(tmp_path: Path) -> None:
    report = download_dataset("s3://rows/set/", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == b"1\n2\n3\n"
    assert [(file.name, file.first_line, file.lines) for file in report.files] == [
        ("a.jsonl", 1, 1),
        ("b.jsonl", 2, 1),
        ("deep/c.json", 3, 1),
        ("empty.jsonl", 4, 0),
    ]


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("s3://rows/set/*.jsonl", ["a.jsonl", "b.jsonl", "empty.jsonl"]),
        ("s3://rows/**/[abc].json*", ["a.jsonl", "hidden/b.jsonl", "set/a.jsonl", "set/b.jsonl", "set/deep/c.json"]),
        ("s3://rows/hidden/*", ["b.jsonl"]),
        ("s3://rows/both/*", ["x.jsonl"]),
        ("s3://rows/both/**/*.jsonl", ["x.jsonl", "x.jsonl/part-0.jsonl"]),
        ("s3://rows/odd/[1].jsonl", ["[1].jsonl"]),
    ],
)
def test_a_pattern_gives_the_objects_that_match(tmp_path: Path, uri: str, names: list[str]) -> None:
    report = download_dataset(uri, tmp_path / "out")

    assert [file.name for file in report.files] == names


def test_a_listing_of_many_pages_is_read_whole(tmp_path: Path, proxy: Server, endpoint: str) -> None:
    proxy.answers["/rows"] = [forward(endpoint, query="&max-keys=1")]

    report = download_dataset("s3://rows/set", tmp_path / "out")

    assert len(report.files) == 4
    assert proxy.paths.count("/rows") > len(report.files)


def test_the_bucket_of_the_connection_is_the_one_of_a_uri_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_S3_BUCKET", "rows")

    report = download_dataset("s3:///a.jsonl", tmp_path / "out")

    assert report.uri == "s3://rows/a.jsonl"


def test_a_uri_without_any_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no bucket; give s3://bucket/key, or set AWS_S3_BUCKET"):
        download_dataset("s3:///a.jsonl", tmp_path / "out")


def test_asked_again_for_unchanged_objects_only_the_listing_is_fetched(tmp_path: Path, proxy: Server) -> None:
    first = download_dataset("s3://rows/set", tmp_path / "out")
    before = (tmp_path / "out/source.json").stat()
    proxy.requests.clear()

    second = download_dataset("s3://rows/set", tmp_path / "out")

    assert (second.unchanged, second.files) == (True, first.files)
    assert (tmp_path / "out/source.json").stat().st_ino == before.st_ino
    assert {path for method, path, _ in proxy.requests if method == "GET"} == {"/rows"}


def test_new_and_changed_objects_are_fetched(tmp_path: Path, client: Any) -> None:
    bodies = [b"1\n", b"2\n", b"3\n"]
    written = []
    for key, body in zip(("a.jsonl", "a.jsonl", "b.jsonl"), bodies, strict=True):
        client.put_object(Bucket="rows", Key=f"changing/{key}", Body=body)
        download_dataset("s3://rows/changing", tmp_path / "out")
        written.append((tmp_path / "out/rows.jsonl").read_bytes())

    assert written == [b"1\n", b"2\n", b"2\n3\n"]


def test_rows_of_another_store_are_fetched_again(
    tmp_path: Path, proxy: Server, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_dataset("s3://rows/a.jsonl", tmp_path / "out")
    monkeypatch.setenv("AWS_S3_ENDPOINT", endpoint)

    assert not download_dataset("s3://rows/a.jsonl", tmp_path / "out").unchanged


def test_a_connection_that_breaks_twice_goes_on_where_it_broke(tmp_path: Path, proxy: Server, endpoint: str) -> None:
    whole, half = forward(endpoint), len(MANY_LINES) // 2
    # Asked for are: what the key is, the object's headers, the object; after a break again its headers and the rest.
    proxy.answers["/rows/many.jsonl"] = [
        whole, whole, forward(endpoint, after=half), whole, forward(endpoint, after=half // 2), whole
    ]  # fmt: skip

    download_dataset("s3://rows/many.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == MANY_LINES
    ranges = [headers.get("Range", "bytes=0-") for method, _, headers in proxy.requests if method == "GET"]
    first, second, third = (int(asked.removeprefix("bytes=").removesuffix("-")) for asked in ranges)
    # What was on its way when the connection broke is lost: a few buffers, whose number is the machine's.
    assert first == 0 < second < third


def test_a_later_call_goes_on_with_the_first_object_that_is_not_whole(
    tmp_path: Path, proxy: Server, endpoint: str
) -> None:
    proxy.answers["/rows/set/b.jsonl"] = [status(403)]
    with pytest.raises(DownloadError, match="the store refuses access"):
        download_dataset("s3://rows/set", tmp_path / "out")
    del proxy.answers["/rows/set/b.jsonl"]
    proxy.requests.clear()

    download_dataset("s3://rows/set", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == b"1\n2\n3\n"
    assert "/rows/set/a.jsonl" not in proxy.paths


def test_bytes_of_two_versions_never_meet(tmp_path: Path, proxy: Server, endpoint: str, client: Any) -> None:
    new, whole = LINES.upper(), forward(endpoint)
    client.put_object(Bucket="rows", Key="changing.jsonl", Body=LINES)

    def change(handler: Any) -> None:
        client.put_object(Bucket="rows", Key="changing.jsonl", Body=new)
        forward(endpoint)(handler)

    # It changes between the second time of asking for its headers and the rest.
    proxy.answers["/rows/changing.jsonl"] = [whole, whole, forward(endpoint, after=5), whole, change, whole]

    download_dataset("s3://rows/changing.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == new


@pytest.mark.parametrize(
    "headers", [{"Etag": '"' + "0" * 32 + '"'}, {"Content_Range": "bytes 3-17/18"}], ids=["another", "elsewhere"]
)
def test_a_store_that_sends_what_was_not_asked_for_is_asked_again(
    tmp_path: Path, proxy: Server, endpoint: str, headers: dict[str, str]
) -> None:
    whole = forward(endpoint)
    odd = forward(endpoint, **headers)
    proxy.answers["/rows/a.jsonl"] = [whole, whole, forward(endpoint, after=5), whole, odd, whole]

    download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert [headers.get("Range") for method, _, headers in proxy.requests if method == "GET"][-1] is None


def test_a_store_that_knows_no_ranges_sends_the_whole_object(tmp_path: Path, proxy: Server, endpoint: str) -> None:
    whole = forward(endpoint)
    proxy.answers["/rows/a.jsonl"] = [
        whole, whole, forward(endpoint, after=5), whole, forward(endpoint, without="Range")
    ]  # fmt: skip

    download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES


def test_a_transient_failure_is_tried_again(tmp_path: Path, proxy: Server, endpoint: str) -> None:
    whole = forward(endpoint)
    proxy.answers["/rows/a.jsonl"] = [status(503), status(429), whole, status(500), whole, status(503), whole]

    download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES


@pytest.mark.parametrize(("code", "mend"), [(401, "refuses access"), (404, "no such bucket")])
def test_what_asking_again_cannot_mend_fails_at_once(tmp_path: Path, proxy: Server, code: int, mend: str) -> None:
    proxy.answers["/rows/a.jsonl"] = [status(code)]

    with pytest.raises(DownloadError, match=mend):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert proxy.paths.count("/rows/a.jsonl") == 1


def test_a_failure_that_lasts_is_reported_in_the_end(
    tmp_path: Path, proxy: Server, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.answers["/rows/a.jsonl"] = [status(503)]

    with pytest.raises(DownloadError, match="s3://rows/a.jsonl: the store cannot be read .*Check AWS_S3_ENDPOINT"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert proxy.paths == ["/rows/a.jsonl"] * fetching.ATTEMPTS
    assert f"Attempt {fetching.ATTEMPTS - 1} failed" in caplog.text


WRONG = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("headers", "algorithm", "found"),
    [
        ({"X_Amz_Checksum_Sha256": WRONG}, "sha256", hashlib.sha256(LINES).hexdigest()),
        ({"Etag": '"' + "0" * 32 + '"'}, "md5", hashlib.md5(LINES, usedforsecurity=False).hexdigest()),
    ],
)
def test_bytes_that_are_not_those_of_the_checksum_are_refused(
    tmp_path: Path, proxy: Server, endpoint: str, headers: dict[str, str], algorithm: str, found: str
) -> None:
    etag = {name: value for name, value in headers.items() if name == "Etag"}
    proxy.answers["/rows/a.jsonl"] = [
        forward(endpoint), forward(endpoint, **headers), forward(endpoint, without="If-Match", **etag)
    ]  # fmt: skip

    with pytest.raises(DownloadError, match=f"a.jsonl: the {algorithm} of what arrived is {found}, but .* says 0+\\."):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert not (tmp_path / "out/.osft-download").exists()


def test_a_checksum_that_the_store_sends_with_the_bytes_is_checked(
    tmp_path: Path, proxy: Server, endpoint: str
) -> None:
    lie = forward(endpoint, X_Amz_Checksum_Crc32="AAAAAA==")
    proxy.answers["/rows/a.jsonl"] = [forward(endpoint), forward(endpoint), lie]

    with pytest.raises(DownloadError, match="a.jsonl did not arrive as the store has it"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    "headers",
    [
        {"Etag": '"' + "0" * 32 + '-3"'},
        {"Etag": '"' + "0" * 32 + '"', "X_Amz_Server_Side_Encryption": "aws:kms"},
        {"Etag": '"' + "0" * 32 + '"', "X_Amz_Server_Side_Encryption_Customer_Algorithm": "AES256"},
    ],
    ids=["several-parts", "kms", "customer-key"],
)
def test_an_etag_that_is_no_checksum_of_the_bytes_is_not_taken_for_one(
    tmp_path: Path, proxy: Server, endpoint: str, headers: dict[str, str]
) -> None:
    said: list[Answer] = [forward(endpoint, without="If-Match", **headers)]
    proxy.answers["/rows/a.jsonl"] = said

    report = download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert report.etag == headers["Etag"]


@pytest.mark.parametrize("uri", ["s3://rows/none.jsonl", "s3://nobucket/a.jsonl", "s3://rows/none/*.jsonl"])
def test_a_missing_object_or_bucket_is_named(tmp_path: Path, uri: str) -> None:
    with pytest.raises(DownloadError, match="the store has no such bucket or key"):
        download_dataset(uri, tmp_path / "out")


def test_objects_of_no_known_suffix_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no object of it has a known suffix. Allowed are .jsonl"):
        download_dataset("s3://rows/text", tmp_path / "out")


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(DownloadError, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(DownloadError, match="the store cannot be read .*Check AWS_S3_ENDPOINT"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tls=self_signed(tmp_path))
    monkeypatch.setenv("AWS_S3_ENDPOINT", server.url.removeprefix("https://"))

    with pytest.raises(
        DownloadError, match="the store's certificate is not trusted. Name its CA file in AWS_CA_BUNDLE"
    ):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    server.stop()
    assert server.requests == []


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("s3://rows/both/x.jsonl", ["x.jsonl"]),
        ("s3://rows/both/x.jsonl/", ["part-0.jsonl"]),
        ("s3://rows/both", ["x.jsonl", "x.jsonl/part-0.jsonl"]),
        ("s3://rows/hidden", ["b.jsonl"]),
        ("s3://rows/hidden/.a.jsonl", [".a.jsonl"]),
    ],
)
def test_an_object_and_what_is_below_its_key_are_told_apart(tmp_path: Path, uri: str, names: list[str]) -> None:
    report = download_dataset(uri, tmp_path / "out")

    assert [file.name for file in report.files] == names


def test_a_trailing_slash_never_means_the_object_itself(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the store has no such bucket or key, or none matches"):
        download_dataset("s3://rows/a.jsonl/", tmp_path / "out")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(LINES, mtime=0)),
        ("gzip,aws-chunked", gzip.compress(LINES, mtime=0)),
        ("aws-chunked", LINES),
        ("identity", LINES),
    ],
)
def test_an_object_that_is_stored_packed_is_unpacked(tmp_path: Path, client: Any, encoding: str, body: bytes) -> None:
    client.put_object(Bucket="rows", Key="packed.jsonl", Body=body, ContentEncoding=encoding)

    report = download_dataset("s3://rows/packed.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert (report.files[0].name, report.files[0].size_bytes) == ("packed.jsonl", len(body))


def test_an_object_that_is_packed_in_another_way_is_refused(tmp_path: Path, client: Any) -> None:
    client.put_object(Bucket="rows", Key="packed.jsonl", Body=b"x", ContentEncoding="br")

    with pytest.raises(DownloadError, match=r"^s3://rows/packed\.jsonl: .*'br'.*\.gz or \.zst\.$"):
        download_dataset("s3://rows/packed.jsonl", tmp_path / "out")


def test_a_key_with_control_characters_is_shown_escaped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^\\x1b\[2J\.json: ") as error:
        download_dataset("s3://rows/escape", tmp_path / "out")

    assert str(error.value).isprintable()


@pytest.mark.parametrize("url", ["not a url", "http://", "ftp://host", "https://host:port", "https://[::1", "a\nb"])
def test_an_endpoint_that_is_no_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_S3_ENDPOINT", url)

    with pytest.raises(ConfigError, match=r"^AWS_S3_ENDPOINT is '.*', which is no URL\. Set it to https://host\.$"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")


@pytest.mark.parametrize("code", ["SlowDown", "Throttling", "RequestTimeout"])
def test_a_busy_store_is_asked_again_whatever_the_status(
    tmp_path: Path, proxy: Server, endpoint: str, code: str
) -> None:
    busy = partial(answer, status=400, body=f"<Error><Code>{code}</Code><Message>busy</Message></Error>".encode())
    proxy.answers["/rows"] = [busy, forward(endpoint)]

    report = download_dataset("s3://rows/set/", tmp_path / "out")

    assert report.rows == 3
