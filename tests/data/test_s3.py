from collections.abc import Iterator
from pathlib import Path

import pytest

from osft.data import fetching
from osft.data.sources import download_dataset
from osft.errors import DownloadError

boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

LINES = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on loopback with one bucket."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="rows")
    for key, body in {"a.jsonl": LINES, "set/b.jsonl": b"2\n", "set/a.jsonl": b"1\n", "set/read.me": b"x"}.items():
        client.put_object(Bucket="rows", Key=key, Body=body)
    yield url
    server.stop()


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The environment that a data science connection gives a pod."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_S3_ENDPOINT", endpoint)
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.01)


def test_an_object_comes_with_its_etag(tmp_path: Path) -> None:
    report = download_dataset("s3://rows/a.jsonl", tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert report.uri == "s3://rows/a.jsonl"
    assert report.etag is not None
    assert report.last_modified is not None


@pytest.mark.parametrize("uri", ["s3://rows/set", "s3://rows/set/"])
def test_a_prefix_gives_its_known_objects_in_the_order_of_keys(tmp_path: Path, uri: str) -> None:
    report = download_dataset(uri, tmp_path / "out")

    assert (tmp_path / "out/rows.jsonl").read_bytes() == b"1\n2\n"
    assert [file.name for file in report.files] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("uri", ["s3://rows/none.jsonl", "s3://nobucket/a.jsonl"])
def test_a_missing_object_or_bucket_is_named(tmp_path: Path, uri: str) -> None:
    with pytest.raises(DownloadError, match=f"{uri}: the store has no such bucket or key"):
        download_dataset(uri, tmp_path / "out")


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
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)

    with pytest.raises(DownloadError, match="the store cannot be read .*Check AWS_S3_ENDPOINT"):
        download_dataset("s3://rows/a.jsonl", tmp_path / "out")
