import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.download import compression
from osft.data.download.compression import open_plain, read_chunks, write_scratch
from osft.errors import DataError

Pack = Callable[[bytes], bytes]
PLAIN = b"".join(b'{"row": %d}\n' % number for number in range(99))


def pack_zstandard(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(plain)


PACKS: dict[str, Pack] = {".gz": gzip.compress, ".zst": pack_zstandard, ".bz2": bz2.compress, ".xz": lzma.compress}
each_compression = pytest.mark.parametrize("suffix", PACKS)
ZSTANDARD_SKIPPABLE_FRAME = struct.pack("<II", 0x184D2A50, 5) + b"hello"


def unpacked(folder: Path, suffix: str, packed: bytes) -> bytes:
    path = folder / "file"
    path.write_bytes(packed)
    with open_plain(path, f"rows.jsonl{suffix}") as file:
        return b"".join(read_chunks(file))


@each_compression
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.binary(max_size=99), min_size=1, max_size=4), chunk=st.integers(1, 50))
def test_every_member_is_read_wherever_chunks_end(
    tmp_path: Path, suffix: str, members: list[bytes], chunk: int
) -> None:
    packed = b"".join(PACKS[suffix](member) for member in members)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "CHUNK_BYTES", chunk)
        plain = unpacked(tmp_path, suffix, packed)

    assert plain == b"".join(members)


@each_compression
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    first, second = PACKS[suffix](PLAIN[:300]), PACKS[suffix](PLAIN[300:])
    # Between two members nothing tells that a second one is missing.
    cuts = [cut for cut in range(len(first) + len(second)) if cut != len(first)]

    for cut in cuts:
        with pytest.raises(DataError, match=rf"^rows\.jsonl\{suffix}: the \{suffix} file is damaged or cut off \("):
            unpacked(tmp_path, suffix, (first + second)[:cut])


@each_compression
def test_a_damaged_byte_never_changes_the_rows_in_silence(tmp_path: Path, suffix: str) -> None:
    packed = PACKS[suffix](PLAIN) * 2
    refused = 0

    for position in range(len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 0x55
        try:
            # A flag or a time in a header may change without harm.
            assert unpacked(tmp_path, suffix, bytes(damaged)) == PLAIN * 2
        except DataError:
            refused += 1

    assert refused > 0.9 * len(packed)


@each_compression
def test_text_behind_the_last_member_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="damaged or cut off"):
        unpacked(tmp_path, suffix, PACKS[suffix](PLAIN) + b"more text")


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".xz", lzma.compress(PLAIN[:300]) + bytes(8) + lzma.compress(PLAIN[300:]) + bytes(4)),
        (".zst", ZSTANDARD_SKIPPABLE_FRAME + pack_zstandard(PLAIN) + ZSTANDARD_SKIPPABLE_FRAME),
    ],
)
def test_padding_between_members_is_no_data(tmp_path: Path, suffix: str, packed: bytes) -> None:
    plain = unpacked(tmp_path, suffix, packed)

    assert plain == PLAIN


def test_an_xz_file_that_asks_for_gigabytes_to_unpack_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(PLAIN, filters=filters))
    # The property byte of the block's only filter is the size of its dictionary; 40 stands for 4 GB.
    header_size = (packed[12] + 1) * 4
    header = packed[12 : 12 + header_size - 4]
    header[header.index(b"\x21\x01") + 2] = 40
    packed[12 : 12 + header_size] = header + struct.pack("<I", zlib.crc32(header))

    with pytest.raises(DataError, match="Memory usage limit exceeded"):
        unpacked(tmp_path, ".xz", bytes(packed))


def test_unpacking_stops_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MIN_FREE_BYTES", 1 << 62)

    with pytest.raises(DataError, match=r"a\.zip: unpacked it is more than the disk holds \(0 bytes so far\)"):
        write_scratch([b"text"], tmp_path / "copy", "a.zip")
