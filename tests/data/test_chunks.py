from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.chunks import split_into_chunks


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(lines=st.lists(st.binary(max_size=20)), chunk_bytes=st.integers(1, 30))
def test_chunks_are_whole_lines_that_make_up_the_file(tmp_path: Path, lines: list[bytes], chunk_bytes: int) -> None:
    content = b"\n".join(lines)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)

    chunks = list(split_into_chunks(path, chunk_bytes))

    pieces = [chunk.read(path) for chunk in chunks]
    assert b"".join(pieces) == content
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert [chunk.start for chunk in chunks] == [len(b"".join(pieces[:index])) for index in range(len(pieces))]
    newlines = [b"".join(pieces[:index]).count(b"\n") for index in range(len(pieces))]
    assert [chunk.first_line for chunk in chunks] == [1 + before for before in newlines]


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")

    assert list(split_into_chunks(path, 10)) == []
