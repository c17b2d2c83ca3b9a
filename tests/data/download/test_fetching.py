import hashlib
import logging
from pathlib import Path

import pytest

from osft.data.download import fetching
from osft.data.download.fetching import (
    DownloadInterruptedError,
    FileVersion,
    Part,
    is_transient_status,
    keep_parts,
    with_retries,
)
from osft.errors import DownloadError

VERSION = FileVersion(etag='"1"', size_bytes=4, validator='"1"')


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.001)


def test_a_part_that_was_left_is_found_again_with_its_version(tmp_path: Path) -> None:
    part = Part(tmp_path, "https://host/a?secret")
    part.start(VERSION)
    part.path.write_bytes(b"row")

    found = Part(tmp_path, "https://host/a?secret")

    assert (found.size_bytes, found.version, found.is_complete) == (3, VERSION, False)
    assert Part(tmp_path, "https://host/b").version is None
    assert not any("secret" in path.name or b"secret" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_part_is_complete_with_the_bytes_that_its_version_has(tmp_path: Path) -> None:
    part = Part(tmp_path, "a")
    part.start(VERSION)
    part.path.write_bytes(b"rows")

    complete = part.is_complete
    part.start(VERSION)

    assert complete
    assert (part.size_bytes, part.is_complete) == (0, False)


@pytest.mark.parametrize("record", [b"", b"[]", b'{"etag": "1"', b'{"unknown": 1}'])
def test_bytes_of_a_version_that_nobody_knows_are_not_gone_on_with(tmp_path: Path, record: bytes) -> None:
    part = Part(tmp_path, "a")
    part.start(VERSION)
    part.path.write_bytes(b"rows")
    part.path.with_suffix(".json").write_bytes(record)

    assert part.version is None
    assert not part.is_complete


def test_checksums_that_agree_are_passed_and_the_sha256_told(tmp_path: Path) -> None:
    part = Part(tmp_path, "a")
    part.start(FileVersion(digests={"md5": hashlib.md5(b"rows", usedforsecurity=False).hexdigest()}))
    part.path.write_bytes(b"rows")

    assert part.check("a") == hashlib.sha256(b"rows").hexdigest()


def test_a_checksum_that_differs_is_named_and_the_bytes_are_removed(tmp_path: Path) -> None:
    part = Part(tmp_path, "a")
    part.start(FileVersion(digests={"sha256": "0" * 64}))
    part.path.write_bytes(b"rows")

    with pytest.raises(
        DownloadError, match=f"s3://b/a: the sha256 of what arrived is {'[0-9a-f]' * 64}, but .* 0{{64}}"
    ):
        part.check("s3://b/a")

    assert list(tmp_path.iterdir()) == []


def test_only_parts_with_bytes_are_kept(tmp_path: Path) -> None:
    started, empty = Part(tmp_path, "a"), Part(tmp_path, "b")
    started.start(VERSION)
    started.path.write_bytes(b"row")
    empty.start(VERSION)
    (tmp_path / "unpacked.parquet").write_bytes(b"rows")

    keep_parts(tmp_path)

    assert sorted(tmp_path.iterdir()) == sorted([started.path, started.path.with_suffix(".json")])


def test_work_that_always_fails_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise DownloadInterruptedError("https://host/a: the server answers 503. Try again later.")

    with pytest.raises(DownloadInterruptedError, match="answers 503"):
        with_retries(fail)

    assert len(attempts) == fetching.ATTEMPTS
    assert len(caplog.records) == fetching.ATTEMPTS - 1
    assert (
        "https://host/a: the server answers 503. Try again later. Attempt 1 failed; the next is in 0.0 s" in caplog.text
    )


def test_bytes_that_came_give_new_patience() -> None:
    sizes = iter([0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5])
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise DownloadInterruptedError("cut")

    with pytest.raises(DownloadInterruptedError):
        with_retries(fail, lambda: next(sizes))

    # Two without a byte, one that brought some, which is the first of a new row.
    assert len(attempts) == 2 + fetching.ATTEMPTS


def test_waits_double_unless_the_server_asks_for_more_and_have_a_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(fetching, "LONGEST_WAIT_SECONDS", 0.3)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    caplog.set_level(logging.WARNING)
    asked = iter([0.0, 0.0, 60.0, 0.0, 0.0, 0.0])

    def fail() -> None:
        raise DownloadInterruptedError("busy", wait_seconds=next(asked))

    with pytest.raises(DownloadInterruptedError):
        with_retries(fail)

    assert [record.getMessage().split()[-2] for record in caplog.records] == ["0.1", "0.2", "0.3", "0.3", "0.3"]


def test_an_error_that_asking_again_cannot_mend_comes_at_once() -> None:
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise DownloadError("no such file")

    with pytest.raises(DownloadError, match="no such file"):
        with_retries(fail)

    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("status", "is_transient"),
    [(status, True) for status in (408, 425, 429, 500, 503)] + [(status, False) for status in (404, 501, 505, 511)],
)
def test_only_a_status_that_waiting_may_mend_is_transient(status: int, is_transient: bool) -> None:
    assert is_transient_status(status) is is_transient


def test_a_link_among_what_is_left_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others/file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path / "others")

    keep_parts(tmp_path / "folder")

    assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "others/file").exists()
