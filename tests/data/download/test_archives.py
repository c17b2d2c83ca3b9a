import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.download import archives
from osft.data.download.formats import copy_rows
from osft.data.download.row_sink import RowSink
from osft.data.download.suffixes import ARCHIVES
from osft.errors import DataError

Files = dict[str, bytes]
PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def copied(folder: Path, name: str, content: bytes) -> bytes:
    """Copy an archive's rows, and check that nothing but the archive is left behind."""
    path = folder / "archive"
    path.write_bytes(content)
    rows = io.BytesIO()
    try:
        copy_rows(path, name, RowSink(rows), folder)
    finally:
        assert list(folder.iterdir()) == [path]
    return rows.getvalue()


def tar_of(files: Files, form: int = tarfile.PAX_FORMAT, **kinds: bytes) -> bytes:
    """Pack files, and under the names of ``kinds`` entries of other types, all of which point to /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return buffer.getvalue()


def zip_of(files: Files, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = method, mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def archive_of(suffix: str, files: Files) -> bytes:
    if suffix == ".zip":
        return zip_of(files)
    compression = ".gz" if suffix == ".tgz" else suffix.removeprefix(".tar")
    return PACKS.get(compression, bytes)(tar_of(files))


each_kind = pytest.mark.parametrize("suffix", [".zip", ".tar"])


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_the_data_files_of_an_archive_are_read_in_the_order_of_names(tmp_path: Path, suffix: str) -> None:
    files = {
        "b/part-2.jsonl": b"3",
        "readme.md": b"text",
        "./a.json": b"[1, 2]",
        "b/part-10.jsonl.gz": gzip.compress(b"4\n5"),
        ".hidden.jsonl": b"9",
        "__MACOSX/._a.json": b"9",
    }

    rows = copied(tmp_path, f"archive{suffix}", archive_of(suffix, files))

    assert rows == b"1\n2\n4\n5\n3\n"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(tmp_path: Path, form: int) -> None:
    name = f"{'folder/' * 12}{'é' * 40}.jsonl"

    assert copied(tmp_path, "a.tar", tar_of({name: b"1\n"}, form)) == b"1\n"


def test_folders_in_an_archive_are_no_members(tmp_path: Path) -> None:
    content = tar_of({"data/a.jsonl": b"1\n"}, data=tarfile.DIRTYPE)

    assert copied(tmp_path, "a.tar", content) == b"1\n"


@each_kind
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/a.jsonl", "has an absolute name"),
        ("C:/a.jsonl", "has an absolute name"),
        ("c:a.jsonl", "has an absolute name"),
        ("../a.jsonl", "has a name that may leave the archive"),
        ("a/../../b.jsonl", "has a name that may leave the archive"),
        ("..", "has a name that may leave the archive"),
        ("a\\..\\b.jsonl", "has a name that may leave the archive"),
        ("a\nb.jsonl", "has a name that cannot be shown"),
        ("../readme.md", "has a name that may leave the archive"),
        ("inner.zip", "is an archive itself"),
        ("data/inner.tar.gz", "is an archive itself"),
    ],
)
def test_a_member_that_is_no_harmless_file_refuses_its_archive(
    tmp_path: Path, suffix: str, name: str, reason: str
) -> None:
    content = archive_of(suffix, {"good.jsonl": b"1\n", name: b"2\n"})

    with pytest.raises(DataError, match=rf"^archive\{suffix}: member '.*' {reason}"):
        copied(tmp_path, f"archive{suffix}", content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar_of({"a\udcff.jsonl": b"1\n"})),
        ("a.zip", zip_of({"aN.jsonl": b"1\n"}).replace(b"aN.jsonl", b"a\0.jsonl")),
    ],
)
def test_a_member_whose_name_is_no_text_refuses_its_archive(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match=rf"^{name}: member '.*' has a name that cannot be shown"):
        copied(tmp_path, name, content)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is no plain file"),
        (tarfile.BLKTYPE, "is no plain file"),
        (tarfile.FIFOTYPE, "is no plain file"),
        (tarfile.GNUTYPE_SPARSE, "is no plain file"),
    ],
)
def test_links_and_devices_in_a_tar_file_are_refused(tmp_path: Path, kind: bytes, reason: str) -> None:
    content = tar_of({"good.jsonl": b"1\n"}, **{"a.jsonl": kind})

    with pytest.raises(DataError, match=f"^a.tar: member 'a.jsonl' {reason}"):
        copied(tmp_path, "a.tar", content)


@pytest.mark.parametrize(("mode", "reason"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "is no plain file")])
def test_links_and_devices_in_a_zip_file_are_refused(tmp_path: Path, mode: int, reason: str) -> None:
    with pytest.raises(DataError, match=f"^a.zip: member 'a.jsonl' {reason}"):
        copied(tmp_path, "a.zip", zip_of({"a.jsonl": b"/etc/passwd"}, mode=mode | 0o644))


def test_an_encrypted_zip_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a.jsonl": b"1\n"}))
    flags_of_the_entry = content.index(b"PK\x01\x02") + 8
    content[flags_of_the_entry] |= 1

    with pytest.raises(DataError, match=r"^a\.zip: member 'a\.jsonl' is encrypted"):
        copied(tmp_path, "a.zip", bytes(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_member_that_cannot_be_unpacked_in_little_memory_is_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(DataError, match="is packed by another method than deflate"):
        copied(tmp_path, "a.zip", zip_of({"a.jsonl": b"1\n"}, method))


@each_kind
def test_two_members_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    content = archive_of(suffix, {"a.jsonl": b"1\n", "./a.jsonl": b"2\n"})

    with pytest.raises(DataError, match=r"two members have the name 'a\.jsonl'"):
        copied(tmp_path, f"a{suffix}", content)


@each_kind
@pytest.mark.parametrize(
    ("names", "listed"),
    [
        ([], "it holds no files, and none that is data"),
        (["a.txt", "b.bin"], "it holds a.txt, b.bin, and none that is data. Allowed are .jsonl"),
        ([f"{number}.txt" for number in range(7)], "4.txt and 2 more, and none"),
    ],
)
def test_an_archive_without_data_says_what_it_holds(tmp_path: Path, suffix: str, names: list[str], listed: str) -> None:
    with pytest.raises(DataError, match=listed):
        copied(tmp_path, f"a{suffix}", archive_of(suffix, dict.fromkeys(names, b"x")))


@each_kind
def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)

    with pytest.raises(DataError, match="it has more than 2 members. Unpack it"):
        copied(tmp_path, f"a{suffix}", archive_of(suffix, {f"{number}.jsonl": b"1" for number in range(3)}))


def test_a_zip_directory_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100)

    with pytest.raises(DataError, match=r"^a\.zip: .*its directory has more than 100 bytes"):
        copied(tmp_path, "a.zip", zip_of({f"{number}.jsonl": b"1" for number in range(3)}))


def test_a_damaged_member_is_named_with_its_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a\.zip/data/b\.json: not a JSON array of rows, at element 1"):
        copied(tmp_path, "a.zip", zip_of({"data/b.json": b"[1"}))


FILES = {"a.jsonl": b'{"a": 1}\n' * 99, "b.jsonl": b"2\n", "c.txt": b"x"}


@pytest.mark.parametrize("suffix", ARCHIVES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    content = archive_of(suffix, FILES)
    # A tar file ends in zeros, of which one block is enough.
    end = len(content.rstrip(b"\0")) if suffix == ".tar" else len(content)

    with pytest.raises(DataError, match="damaged or cut off"):
        copied(tmp_path, f"a{suffix}", content[: int(share * end)])


@each_kind
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_archive_is_refused_or_read(tmp_path: Path, suffix: str, share: float, byte: int) -> None:
    content = bytearray(archive_of(suffix, FILES))
    content[int(share * len(content))] = byte

    # A tar file has no checksum of its contents, and neither kind one of its names.
    with suppress(DataError):
        copied(tmp_path, f"a{suffix}", bytes(content))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_damaged_contents_of_a_zip_file_are_never_taken_for_rows(tmp_path: Path, share: float, byte: int) -> None:
    content = bytearray(zip_of(FILES))
    content[int(share * content.index(b"PK\x01\x02"))] = byte

    try:
        rows = copied(tmp_path, "a.zip", bytes(content))
    except DataError:
        return

    assert rows == FILES["a.jsonl"] + FILES["b.jsonl"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:512] + b"x" * 512 + content[1024:], "stands neither a member nor the end"),
        (lambda content: content + content, "something follows its end"),
    ],
)
def test_a_tar_file_is_read_to_its_end_or_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    # The empty first member is one block; what is damaged is the header behind it.
    content = tar_of({"a.jsonl": b"", "b.jsonl": b"2\n"})

    with pytest.raises(DataError, match=rf"^a\.tar: the archive is damaged or cut off .*{reason}"):
        copied(tmp_path, "a.tar", damage(content))


def test_a_tar_header_that_claims_to_be_long_is_refused(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("long")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30

    with pytest.raises(DataError, match="a header has more than 1048576 bytes"):
        copied(tmp_path, "a.tar", long_name.tobuf() + tar_of({"a.jsonl": b"1\n"}))


def test_a_zip_member_whose_size_lies_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a.jsonl": b"1\n" * 999}))
    size_in_the_directory = content.index(b"PK\x01\x02") + 24
    struct.pack_into("<I", content, size_in_the_directory, 10)

    with pytest.raises(DataError, match=r"^a\.zip/a\.jsonl: the archive is damaged or cut off .*CRC"):
        copied(tmp_path, "a.zip", bytes(content))
