import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osft.data.increments.seen_rows import SeenRows, split_hashes, write_seen_rows
from osft.errors import DataError, MissingPathError

# Few values, so that first parts meet with equal and with other last parts.
HASHES = st.lists(st.tuples(st.sampled_from([0, 1, 2, 2**64 - 1]), st.integers(0, 3)), max_size=20)


def write(path: Path, hashes: list[tuple[int, int]]) -> Path:
    """Write hashes as a run leaves them."""
    rows = np.array(sorted(hashes), dtype=np.uint64).reshape(-1, 2)
    with write_seen_rows(path) as file:
        file.add(rows[:, 0], rows[:, 1])
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=HASHES, second=HASHES, asked=HASHES)
def test_a_row_is_seen_if_one_of_the_files_has_it(
    tmp_path: Path, first: list[tuple[int, int]], second: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    seen = SeenRows([write(tmp_path / "a.bin", first), write(tmp_path / "b.bin", second)])
    parts = np.array(asked, dtype=np.uint64).reshape(-1, 2)

    found = seen.contain(parts[:, 0], parts[:, 1])

    assert found.tolist() == [one in first or one in second for one in asked]


def test_hashes_are_split_as_they_are_written(tmp_path: Path) -> None:
    hashes = bytes(range(32))

    first, last = split_hashes(hashes)
    with write_seen_rows(tmp_path / "seen_rows.bin") as file:
        file.add(first, last)

    assert (tmp_path / "seen_rows.bin").read_bytes() == hashes[:8] + hashes[16:24] + hashes[8:16] + hashes[24:]


def test_an_error_leaves_no_file_and_an_older_one_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "seen_rows.bin", [(1, 1)])

    with pytest.raises(RuntimeError, match="stop"), write_seen_rows(tmp_path / "seen_rows.bin") as file:
        file.add(*split_hashes(bytes(32)))
        raise RuntimeError("stop")

    assert [path.name for path in tmp_path.iterdir()] == ["seen_rows.bin"]
    assert (tmp_path / "seen_rows.bin").stat().st_size == 16


def test_hashes_that_are_gone_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"seen_rows\.bin: the hashes of an earlier run's rows are not there"):
        SeenRows([tmp_path / "seen_rows.bin"])


def test_hashes_that_are_cut_off_are_named(tmp_path: Path) -> None:
    (tmp_path / "seen_rows.bin").write_bytes(b"12345")

    with pytest.raises(DataError, match=r"seen_rows\.bin: 5 bytes are no whole number of hashes of 16"):
        SeenRows([tmp_path / "seen_rows.bin"])


def test_a_file_is_asked_without_being_read_into_memory(tmp_path: Path) -> None:
    rows = 4_000_000
    first = np.arange(rows, dtype=np.uint64) << np.uint64(40)
    with write_seen_rows(tmp_path / "seen_rows.bin") as file:
        file.add(first, first)
    script = """
        import resource, sys
        import numpy as np
        from pathlib import Path
        from osft.data.increments.seen_rows import SeenRows

        seen = SeenRows([Path(sys.argv[1])])
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        asked = np.arange(0, 1000, dtype=np.uint64) << np.uint64(39)
        found = seen.contain(asked, asked)
        print(int(found.sum()), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "seen_rows.bin")]

    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert printed[0] == "500"
    assert int(printed[1]) < 8 << 20 < 16 * rows
