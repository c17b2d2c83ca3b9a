import base64
import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osft.data.download.web_headers import hexadecimal, packed_name, read_version, retry_after_seconds, starts_at
from osft.errors import DownloadError

NOW = datetime(2025, 11, 1, tzinfo=UTC)
DIGEST = hashlib.sha256(b"rows")
BASE64 = base64.b64encode(DIGEST.digest()).decode()
HEADERS = ("ETag", "Last-Modified", "Date", "Content-Length", "Content-Range", "Retry-After", "Repr-Digest", "Digest")


@pytest.mark.parametrize(
    ("status", "headers", "size_bytes"),
    [
        (200, {"Content-Length": "18"}, 18),
        (200, {"Content-Length": "-1"}, None),
        (200, {"Content-Length": "²"}, None),
        (200, {"Content-Length": "9" * 5000}, None),
        (200, {}, None),
        (206, {"Content-Length": "13", "Content-Range": "bytes 5-17/18"}, 18),
        (206, {"Content-Length": "13", "Content-Range": "bytes 5-17/*"}, None),
        (206, {"Content-Length": "13"}, None),
    ],
)
def test_the_size_is_that_of_the_whole_file(status: int, headers: dict[str, str], size_bytes: int | None) -> None:
    assert read_version(status, headers).size_bytes == size_bytes


@pytest.mark.parametrize(
    ("header", "start"), [("bytes 5-17/18", 5), ("Bytes 0-0/*", 0), ("bytes */18", None), ("rows 1-2/3", None)]
)
def test_a_part_tells_where_it_starts(header: str, start: int | None) -> None:
    assert starts_at({"Content-Range": header}) == start


@pytest.mark.parametrize(
    "headers",
    [
        {"Repr-Digest": f"sha-256=:{BASE64}:"},
        {"Repr-Digest": f"unixsum=:AAA=:, SHA-256=:{BASE64}:", "Digest": "sha-256=" + "A" * 43 + "="},
        {"Digest": f"SHA-256={BASE64}"},
        {"Digest": f"md5=AAAA,sha-256={BASE64},unixsum=30637"},
    ],
)
def test_a_digest_of_the_file_is_read_in_either_form(headers: dict[str, str]) -> None:
    assert read_version(206, headers).digests == {"sha256": DIGEST.hexdigest()}


def test_the_md5_of_a_part_is_not_one_of_the_file() -> None:
    headers = {"Content-MD5": base64.b64encode(bytes(16)).decode()}

    assert read_version(200, headers).digests == {"md5": "0" * 32}
    assert read_version(206, headers).digests == {}


@given(st.binary(max_size=40), st.sampled_from([16, 32]))
def test_a_digest_has_the_length_of_its_hash(digest: bytes, size_bytes: int) -> None:
    text = base64.b64encode(digest).decode()

    assert hexadecimal(text, size_bytes) == (digest.hex() if len(digest) == size_bytes else None)


@given(st.text(max_size=60) | st.from_regex(r"(sha-256=:|bytes |W/)[0-9A-Za-z:/*-]{0,20}"))
def test_no_header_is_too_odd_to_be_read(text: str) -> None:
    headers = dict.fromkeys(HEADERS, text)

    for status in (200, 206):
        read_version(status, headers)

    assert retry_after_seconds(headers, NOW) >= 0


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"1"', "Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, None),
        ({"Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, "Sat, 01 Nov 2025 00:00:00 GMT"),
        ({"Last-Modified": "Sat, 01 Nov 2025 00:01:30 GMT"}, None),
        ({"Last-Modified": "yesterday"}, None),
        ({"Last-Modified": "Sat, 01 Nov 2025 00:00:00 +99999999999999999999"}, None),
        ({"ETag": '""', "Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, "Sat, 01 Nov 2025 00:00:00 GMT"),
        ({"ETag": '"\u00e9"'}, None),
        ({}, None),
    ],
)
def test_only_a_strong_validator_names_a_version(headers: dict[str, str], validator: str | None) -> None:
    version = read_version(200, {"Date": "Sat, 01 Nov 2025 00:02:00 GMT", **headers})

    assert version.validator == validator


def test_the_wait_is_read_as_seconds_or_as_a_time() -> None:
    later = format_datetime(NOW + timedelta(seconds=90), usegmt=True)

    assert retry_after_seconds({"Retry-After": "120"}, NOW) == 120
    assert retry_after_seconds({"Retry-After": later}, NOW) == 90
    assert retry_after_seconds({"Retry-After": format_datetime(NOW - timedelta(1))}, NOW) == 0
    assert retry_after_seconds({"Retry-After": "soon"}, NOW) == 0
    assert retry_after_seconds({}, NOW) == 0


@pytest.mark.parametrize(
    ("name", "encoding", "packed"),
    [
        ("a.jsonl", None, "a.jsonl"),
        ("a.jsonl", "identity", "a.jsonl"),
        ("a.jsonl", " GZIP", "a.jsonl.gz"),
        ("a.jsonl.gz", "gzip", "a.jsonl.gz"),
        ("a.tgz", "x-gzip", "a.tgz"),
        ("a.parquet", "zstd", "a.parquet.zst"),
    ],
)
def test_a_packing_on_the_way_is_a_suffix_of_the_name(name: str, encoding: str | None, packed: str) -> None:
    assert packed_name(name, encoding, "https://host/a") == packed


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip"])
def test_a_packing_that_is_not_known_is_refused(encoding: str) -> None:
    with pytest.raises(DownloadError, match=f"https://host/a: the server packs the file as '{encoding}'. Store it unp"):
        packed_name("a.jsonl", encoding, "https://host/a")
