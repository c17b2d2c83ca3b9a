import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from osft.data.download.local import LocalSource, open_local
from osft.data.download.row_sink import RowSink
from osft.errors import ConfigError, DataError, MissingPathError, WorkspaceError
from osft.workspace import Workspace


def fill(folder: Path, *names: str) -> None:
    """Write files of one row each, the row being the file's name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'"{name}"\n')


def names_of(source: LocalSource) -> list[str]:
    return [origin.name for origin in source.origins()]


def test_a_file_is_read_whatever_its_folder_holds(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.jsonl")
    rows = io.BytesIO()

    source = open_local("a.jsonl", str(tmp_path / "a.jsonl"), None)
    source.copy_rows(RowSink(rows), tmp_path)

    assert rows.getvalue() == b'"a.jsonl"\n'
    assert names_of(source) == ["a.jsonl"]


def test_a_folder_gives_its_known_files_in_the_order_of_names(tmp_path: Path) -> None:
    fill(tmp_path, "c.jsonl", "a.jsonl.bz2", "b/x.json", "b/y/z.tar.gz", "readme.md", ".hidden.jsonl", ".git/a.jsonl")

    source = open_local("data", str(tmp_path), None)

    assert names_of(source) == ["a.jsonl.bz2", "b/x.json", "b/y/z.tar.gz", "c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["train1.jsonl"]),
        ("2026-*/train*.jsonl", ["2026-01/train2.jsonl", "2026-02/train3.jsonl"]),
        ("2026-0[2-9]/*", ["2026-02/notes.json", "2026-02/train3.jsonl"]),
        (
            "**/train?.jsonl",
            ["2026-01/train2.jsonl", "2026-02/deep/train4.jsonl", "2026-02/train3.jsonl", "train1.jsonl"],
        ),
        ("2026-02/**/*.jsonl", ["deep/train4.jsonl", "train3.jsonl"]),
        ("**/deep/*", ["2026-02/deep/train4.jsonl"]),
        ("**/**/t*4.jsonl", ["2026-02/deep/train4.jsonl"]),
    ],
)
@pytest.mark.parametrize("in_workspace", [True, False])
def test_a_pattern_gives_what_matches(tmp_path: Path, pattern: str, names: list[str], in_workspace: bool) -> None:
    fill(tmp_path, "train1.jsonl", "2026-01/train2.jsonl", "2026-02/train3.jsonl", "2026-02/deep/train4.jsonl")
    fill(tmp_path, "2026-02/notes.json", "2026-02/readme.md", ".hidden/train5.jsonl", "2026-02/.train6.jsonl")

    if in_workspace:
        source = open_local(f"pvc://{pattern}", pattern, Workspace(tmp_path))
    else:
        source = open_local(pattern, str(tmp_path / pattern), None)

    assert names_of(source) == names


def test_a_relative_pattern_is_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "data/a.jsonl", "run/out")
    monkeypatch.chdir(tmp_path / "run")

    source = open_local("../data/*.jsonl", "../data/*.jsonl", None)

    assert names_of(source) == ["a.jsonl"]
    assert source.identity == str(tmp_path / "data/*.jsonl")


def test_a_file_may_have_the_name_of_a_pattern(tmp_path: Path) -> None:
    fill(tmp_path, "part[1]*.jsonl", "part1x.jsonl")

    source = open_local("part", str(tmp_path / "part[1]*.jsonl"), None)

    assert names_of(source) == ["part[1]*.jsonl"]


def test_a_linked_folder_is_followed_where_the_pattern_ends_the_depth(tmp_path: Path) -> None:
    fill(tmp_path, "2026-01/a.jsonl")
    (tmp_path / "latest").symlink_to("2026-01")
    (tmp_path / "2026-01/loop").symlink_to("..")

    assert names_of(open_local("x", str(tmp_path / "*/a.jsonl"), None)) == ["2026-01/a.jsonl", "latest/a.jsonl"]
    assert names_of(open_local("x", str(tmp_path / "**/a.jsonl"), None)) == ["2026-01/a.jsonl"]


@pytest.mark.parametrize("location", ["none.jsonl", "none/*.jsonl", "*.parquet", "[a].jsonl"])
@pytest.mark.parametrize("in_workspace", [True, False])
def test_what_is_not_there_is_named(tmp_path: Path, location: str, in_workspace: bool) -> None:
    fill(tmp_path, "b.jsonl")

    with pytest.raises(MissingPathError, match=r"no such file or folder|no file matches|does not exist"):
        if in_workspace:
            open_local(f"pvc://{location}", location, Workspace(tmp_path))
        else:
            open_local(location, str(tmp_path / location), None)


@pytest.mark.parametrize(
    ("location", "reason"),
    [("", "no file in the folder has"), ("*", "no file that matches has"), ("e", "no file in the folder has")],
)
def test_files_of_which_none_is_known_are_refused(tmp_path: Path, location: str, reason: str) -> None:
    fill(tmp_path, "readme.md")
    (tmp_path / "e").mkdir()

    with pytest.raises(DataError, match=rf"^data: {reason}.* known suffix\. Allowed are \.jsonl"):
        open_local("data", str(tmp_path / location), None)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    # Deeper than a path may be long: the superuser, who may read everything, cannot read it by its path either.
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(50):
        os.mkdir("x" * 100, dir_fd=folder)
        above, folder = folder, os.open("x" * 100, os.O_RDONLY, dir_fd=folder)
        os.close(above)
    os.close(folder)

    with pytest.raises(DataError, match=r"^data: .* cannot be read \(File name too long\)"):
        open_local("data", str(tmp_path), None)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")

    with pytest.raises(DataError, match=r"^data: b\.jsonl is no file but a broken link or a device"):
        open_local("data", str(tmp_path), None)


@pytest.mark.parametrize(
    "location",
    ["../outside/a.jsonl", "../outside/*.jsonl", "link.jsonl", "*.jsonl", "linked/*.jsonl", "*/a.jsonl", "", "/etc/*"],
)
def test_nothing_outside_of_the_workspace_is_read(tmp_path: Path, location: str) -> None:
    root = tmp_path / "workspace"
    fill(tmp_path, "outside/a.jsonl", "workspace/good.jsonl")
    (root / "link.jsonl").symlink_to(tmp_path / "outside/a.jsonl")
    (root / "linked").symlink_to(tmp_path / "outside")

    with pytest.raises(WorkspaceError, match="leaves the workspace"):
        open_local(f"pvc://{location}", location, Workspace(root))


def test_a_pattern_cannot_climb_out_of_its_folder(tmp_path: Path) -> None:
    fill(tmp_path, "outside.jsonl", "workspace/a/b.jsonl")

    with pytest.raises(MissingPathError, match="no file matches"):
        open_local("pvc://*/../../*.jsonl", "*/../../*.jsonl", Workspace(tmp_path / "workspace"))


def test_each_file_is_described_with_its_lines_in_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n\n2")
    (tmp_path / "b.jsonl").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("x.jsonl", "3\n")
        archive.writestr("y.json", "[4]")
    os.utime(tmp_path / "a.jsonl", ns=(0, 1_700_000_000_123_456_789))
    rows = io.BytesIO()

    origins = open_local("data", str(tmp_path), None).copy_rows(RowSink(rows), tmp_path)

    assert rows.getvalue() == b"1\n\n2\n3\n4\n"
    assert [(origin.name, origin.first_line, origin.lines) for origin in origins] == [
        ("a.jsonl", 1, 3),
        ("b.jsonl", 4, 0),
        ("c.zip", 4, 2),
    ]
    assert origins[0].sha256 == hashlib.sha256(b"1\n\n2").hexdigest()
    state = (tmp_path / "a.jsonl").stat()
    assert (origins[0].size_bytes, origins[0].etag) == (4, f"4-1700000000123456789-{state.st_ctime_ns}-{state.st_ino}")
    assert origins[0].last_modified == "2023-11-14T22:13:20+00:00"


def test_a_source_is_unchanged_until_a_file_is_written_or_added(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.jsonl")
    origins = open_local("data", str(tmp_path), None).copy_rows(RowSink(io.BytesIO()), tmp_path)

    unchanged = open_local("data", str(tmp_path), None).is_unchanged(origins)
    os.utime(tmp_path / "a.jsonl", ns=(0, 1))
    after_a_write = open_local("data", str(tmp_path), None).is_unchanged(origins)
    fill(tmp_path, "c.jsonl")
    after_another_file = open_local("data", str(tmp_path), None).is_unchanged(origins)

    assert (unchanged, after_a_write, after_another_file) == (True, False, False)


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    origins = open_local("data", str(tmp_path), None).copy_rows(RowSink(io.BytesIO()), tmp_path)
    before = (tmp_path / "a.jsonl").stat()

    (tmp_path / "a.jsonl").write_text('"A.jsonl"\n')
    os.utime(tmp_path / "a.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))

    assert (tmp_path / "a.jsonl").stat().st_size == before.st_size
    assert not open_local("data", str(tmp_path), None).is_unchanged(origins)


def test_sources_are_told_apart_by_what_they_read(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.jsonl")

    identities = {open_local("x", str(tmp_path / name), None).identity for name in ("a.jsonl", "b.jsonl", "", "*")}

    assert len(identities) == 4


@pytest.mark.parametrize(
    ("location", "output"),
    [
        ("data", "data"),
        ("data", "data/inside"),
        ("data/rows.jsonl", "data"),
        ("data/*.jsonl", "data"),
        ("data/**/*.jsonl", "data/inside/deeper"),
        ("data/link.jsonl", "data"),
        ("data/source.json", "data"),
        ("data/*.json", "data"),
        ("data/**/s*.json", "data/inside"),
    ],
)
def test_an_output_that_would_be_a_part_of_the_source_is_refused(tmp_path: Path, location: str, output: str) -> None:
    fill(tmp_path, "data/rows.jsonl", "data/source.json")
    (tmp_path / "data/link.jsonl").symlink_to("rows.jsonl")
    source = open_local("data", str(tmp_path / location), None)

    with pytest.raises(ConfigError, match=r"lies in the source data\. Choose another folder"):
        source.refuse_output(tmp_path / output)


@pytest.mark.parametrize(
    ("location", "output"),
    [("data", "out"), ("data/a.jsonl", "data"), ("data/*.jsonl", "data/out"), ("data/a*", "data")],
)
def test_an_output_beside_the_source_is_allowed(tmp_path: Path, location: str, output: str) -> None:
    fill(tmp_path, "data/a.jsonl")
    source = open_local("data", str(tmp_path / location), None)

    source.refuse_output(tmp_path / output)


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    source = open_local("data", str(tmp_path), None)

    class WritingSink(RowSink):
        def end_line(self) -> None:
            super().end_line()
            with (tmp_path / "a.jsonl").open("ab") as file:
                file.write(b"more\n")

    with pytest.raises(DataError, match=r"a\.jsonl: the file changed while it was read"):
        source.copy_rows(WritingSink(io.BytesIO()), tmp_path)


@pytest.mark.parametrize("location", ["", "*.jsonl", os.fsdecode(b"\xff.jsonl")])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_read(tmp_path: Path, location: str) -> None:
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text("1\n")

    with pytest.raises(DataError, match=r"\\udcff\.jsonl': the name, or a folder's, is not UTF-8\. Rename it"):
        open_local("data", str(tmp_path / location), None)


def test_a_link_that_is_put_in_later_and_leaves_the_workspace_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    fill(tmp_path, "secret.jsonl", "workspace/data/a.jsonl")
    source = open_local("pvc://data", "data", Workspace(root))
    (root / "data/a.jsonl").unlink()
    (root / "data/a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    rows = io.BytesIO()

    with pytest.raises(WorkspaceError, match="leaves the workspace"):
        source.copy_rows(RowSink(rows), tmp_path)

    assert rows.getvalue() == b""


@pytest.mark.parametrize("in_workspace", [True, False])
def test_a_file_that_is_removed_meanwhile_is_named(tmp_path: Path, in_workspace: bool) -> None:
    fill(tmp_path, "data/a.jsonl")
    if in_workspace:
        source = open_local("data", "data", Workspace(tmp_path))
    else:
        source = open_local("data", str(tmp_path / "data"), None)
    (tmp_path / "data/a.jsonl").unlink()

    with pytest.raises(MissingPathError, match=r"^data: a\.jsonl was removed meanwhile\. Try again\."):
        source.copy_rows(RowSink(io.BytesIO()), tmp_path)
    with pytest.raises(MissingPathError, match="removed meanwhile"):
        source.is_unchanged(())
