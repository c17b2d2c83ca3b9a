import hashlib
import os
import time
from pathlib import Path

import pytest

from osft.errors import EvaluationError
from osft.file_hashes import SETTLED_NS, file_sha256s
from osft.workspace import read_json, write_json


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def long_after() -> int:
    """A clock by which every file of a test is old."""
    return time.time_ns() + 2 * SETTLED_NS


def forge(memo: Path) -> None:
    """Make the one remembered hash wrong, so that a result shows where it comes from."""
    (note,) = memo.iterdir()
    write_json(note, read_json(note) | {"sha256": "forged"})


def test_hashes_have_the_order_of_the_files(tmp_path: Path) -> None:
    contents = [f"file {number}".encode() for number in range(9)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)

    assert file_sha256s([tmp_path / str(number) for number in range(9)], memo=None) == tuple(map(sha256, contents))


def test_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    file, memo = tmp_path / "weights", tmp_path / "memo"
    file.write_bytes(b"weights")

    first = file_sha256s([file], memo=memo, now_ns=long_after)
    forge(memo)

    assert first == (sha256(b"weights"),)
    assert file_sha256s([file], memo=memo, now_ns=long_after) == ("forged",)


def test_link_and_its_file_are_remembered_as_one(tmp_path: Path) -> None:
    file, link, memo = tmp_path / "weights", tmp_path / "link", tmp_path / "memo"
    file.write_bytes(b"weights")
    link.symlink_to(file)

    file_sha256s([file], memo=memo, now_ns=long_after)
    forge(memo)

    assert file_sha256s([link], memo=memo, now_ns=long_after) == ("forged",)


def test_file_replaced_by_one_of_equal_size_and_age_is_read_again(tmp_path: Path) -> None:
    file, memo = tmp_path / "weights", tmp_path / "memo"
    file.write_bytes(b"before")
    file_sha256s([file], memo=memo, now_ns=long_after)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)

    (tmp_path / "new").write_bytes(b"behind")
    (tmp_path / "new").replace(file)
    os.utime(file, ns=times)

    assert file_sha256s([file], memo=memo, now_ns=long_after) == (sha256(b"behind"),)


@pytest.mark.parametrize("age_ns", [-SETTLED_NS, 0, SETTLED_NS])
def test_hash_of_a_file_written_within_a_tick_is_not_remembered(tmp_path: Path, age_ns: int) -> None:
    file, memo = tmp_path / "weights", tmp_path / "memo"
    file.write_bytes(b"weights")

    hashes = file_sha256s([file], memo=memo, now_ns=lambda: file.stat().st_ctime_ns + age_ns)

    assert hashes == (sha256(b"weights"),)
    assert not memo.exists()


def test_file_of_the_hubs_cache_is_known_by_its_name(tmp_path: Path) -> None:
    digest = sha256(b"weights")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(b"not read")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)

    assert file_sha256s([tmp_path / "model.safetensors"], memo=None) == (digest,)


def test_damaged_memo_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, memo = tmp_path / "weights", tmp_path / "memo"
    file.write_bytes(b"weights")
    file_sha256s([file], memo=memo, now_ns=long_after)
    next(memo.iterdir()).write_text("[")

    assert file_sha256s([file], memo=memo, now_ns=long_after) == (sha256(b"weights"),)
    assert "no remembered hash" in caplog.text


def test_memo_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    (tmp_path / "memo").write_text("no folder")

    hashes = file_sha256s([file], memo=tmp_path / "memo", now_ns=long_after)

    assert hashes == (sha256(b"weights"),)
    assert "the hash cannot be remembered" in caplog.text


def test_dangling_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")

    with pytest.raises(EvaluationError, match=r"model.safetensors: the file cannot be read .* Fetch the model again"):
        file_sha256s([tmp_path / "model.safetensors"], memo=None)
