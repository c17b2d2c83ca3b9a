import hashlib
import io

from hypothesis import given
from hypothesis import strategies as st

from osft.data.download.row_sink import RowSink

PIECES = st.lists(st.sampled_from([b"\n", b"\n\n", b" ", b"\t\r", b"\v\f", b"a", b'{"a": 1}', b"\xc2\xa0", b"\x00"]))


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(text) + 1) for cut in cuts)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(text=PIECES.map(b"".join), cuts=st.lists(st.integers(0), max_size=6))
def test_blocks_give_what_their_lines_one_by_one_give(text: bytes, cuts: list[int]) -> None:
    by_blocks, by_lines = io.BytesIO(), io.BytesIO()
    block_sink, line_sink = RowSink(by_blocks), RowSink(by_lines)

    for block in pieces_of(text, cuts):
        block_sink.write_block(block)
    block_sink.end_line()
    for line in io.BytesIO(text):
        line_sink.write_line(line)

    written = text if text.endswith(b"\n") or not text else text + b"\n"
    assert by_blocks.getvalue() == by_lines.getvalue() == written
    assert (block_sink.lines, block_sink.progress.rows) == (line_sink.lines, line_sink.progress.rows)
    assert block_sink.progress.size_bytes == len(written)
    assert block_sink.sha256 == line_sink.sha256 == hashlib.sha256(written).hexdigest()


def test_lines_are_all_counted_and_rows_are_those_that_are_not_blank() -> None:
    sink = RowSink(io.BytesIO())

    sink.write_block(b'{"a": 1}\r\n\n \t\n{"a')
    sink.write_block(b'": 2}')
    sink.end_line()
    sink.write_line(b"{}")

    assert (sink.lines, sink.progress.rows) == (5, 3)
