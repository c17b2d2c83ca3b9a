import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import orjson
import pytest
from filelock import FileLock

from osft.data.download.download import download_dataset, download_into_run
from osft.errors import ConfigError, DataError, MissingPathError, WorkspaceError
from osft.workspace import Workspace

LINES = b'{"a": 1}\n{"a": 2}\n'


def test_rows_and_their_source_are_written(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)

    report = download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    saved = orjson.loads((tmp_path / "out/source.json").read_bytes())
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES
    assert (report.rows, report.size_bytes, report.sha256) == (2, len(LINES), hashlib.sha256(LINES).hexdigest())
    assert (saved["rows"], saved["sha256"]) == (2, report.sha256)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".osft-download.lock",
        "rows.jsonl",
        "source.json",
    ]


def test_the_report_tells_which_lines_came_from_which_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_bytes(b"1\n\n2")
    (tmp_path / "data/b.json").write_bytes(b"[3, 4]")

    report = download_dataset(str(tmp_path / "data"), tmp_path / "out")

    assert report.rows == 4
    assert [(file.name, file.first_line, file.lines) for file in report.files] == [("a.jsonl", 1, 3), ("b.json", 4, 2)]


def test_a_workspace_path_is_found_inside_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_bytes(LINES)
    monkeypatch.setenv("OSFT_WORKSPACE", str(tmp_path))

    given = download_dataset("pvc://data/rows.jsonl", tmp_path / "a", workspace=Workspace(tmp_path))
    from_environment = download_dataset("pvc://data", tmp_path / "b")

    assert given.sha256 == from_environment.sha256
    assert given.uri == "pvc://data/rows.jsonl"


@pytest.mark.parametrize("path", ["../outside.jsonl", "/etc", "link.jsonl", "folder"])
def test_a_workspace_path_may_not_leave_the_workspace(tmp_path: Path, path: str) -> None:
    root = tmp_path / "workspace"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside.jsonl").write_bytes(LINES)
    for link in ("link.jsonl", "folder/link.jsonl"):
        (root / link).symlink_to(tmp_path / "outside.jsonl")

    with pytest.raises(WorkspaceError, match="leaves the workspace"):
        download_dataset(f"pvc://{path}", tmp_path / "out", workspace=Workspace(root))


@pytest.mark.parametrize("uri", ["/no/such/file.jsonl", "pvc://none.jsonl"])
def test_a_missing_path_is_named(tmp_path: Path, uri: str) -> None:
    with pytest.raises(MissingPathError, match=r"(file|none)\.jsonl.*(no such file|not exist)"):
        download_dataset(uri, tmp_path / "out", workspace=Workspace(tmp_path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the dataset URI is empty"),
        ("file:///etc/passwd", "may not start with file:; allowed are pvc://, hf://, https://, s3://"),
        ("FILE:/etc/passwd", "may not start with file:"),
        ("ftp://host/a.jsonl", "may not start with ftp:"),
        ("http://example.com/a.jsonl", "http is not encrypted and allowed on loopback only"),
        ("https:///a.jsonl", "no host name"),
        ("https://[::1/a.jsonl", "cannot be read"),
        ("https://example.com/a", "the format is not known by its suffix"),
        ("hf://", r"allowed is hf://name\[:config\]\[@revision\]"),
    ],
)
def test_a_bad_uri_is_refused(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        download_dataset(uri, tmp_path / "out")


@pytest.mark.parametrize("uri", ["https://user:secret@example.com/a.jsonl", "s3://key:secret@bucket/a.jsonl"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="carries credentials before '@'") as caught:
        download_dataset(uri, tmp_path / "out")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("output", [".", "inside"])
def test_an_output_in_the_source_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")

    with pytest.raises(ConfigError, match="lies in the source"):
        download_dataset(str(tmp_path), tmp_path / output)

    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"


def test_a_source_without_rows_is_refused_and_leaves_what_was_there(tmp_path: Path) -> None:
    source, output = tmp_path / "data.jsonl", tmp_path / "out"
    source.write_bytes(LINES)
    download_dataset(str(source), output)
    source.write_bytes(b"\n \n")

    with pytest.raises(DataError, match="data.jsonl: there are no rows in it. Give a dataset that has some"):
        download_dataset(str(source), output)

    assert (output / "rows.jsonl").read_bytes() == LINES
    assert not (output / ".osft-download").exists()


def test_asked_again_for_unchanged_files_nothing_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    first = download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")
    before = (tmp_path / "out/rows.jsonl").stat().st_ino
    caplog.set_level(logging.INFO)

    second = download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    assert (first.unchanged, second.unchanged, second.sha256) == (False, True, first.sha256)
    assert (tmp_path / "out/rows.jsonl").stat().st_ino == before
    assert "data.jsonl is unchanged since it was fetched; nothing to do" in caplog.text
    assert "unchanged" not in orjson.loads((tmp_path / "out/source.json").read_bytes())


def spoil_rows(output: Path) -> None:
    (output / "rows.jsonl").write_bytes(LINES[:5])


def remove_rows(output: Path) -> None:
    (output / "rows.jsonl").unlink()


def edit_rows_in_place(output: Path) -> None:
    rows = output / "rows.jsonl"
    changed_ns = rows.stat().st_mtime_ns + 1_000_000_000
    rows.write_bytes(LINES.replace(b"1", b"7"))
    os.utime(rows, ns=(changed_ns, changed_ns))


def spoil_report(output: Path) -> None:
    (output / "source.json").write_bytes(b'{"uri": "/data.jsonl", "files": []}')


def change_source(output: Path) -> None:
    (output.parent / "data.jsonl").write_bytes(LINES + b"3\n")


@pytest.mark.parametrize("change", [spoil_rows, remove_rows, edit_rows_in_place, spoil_report, change_source])
def test_what_changed_on_either_side_is_fetched_again(tmp_path: Path, change: object) -> None:
    source, output = tmp_path / "data.jsonl", tmp_path / "out"
    source.write_bytes(LINES)
    download_dataset(str(source), output)
    assert callable(change)
    change(output)

    report = download_dataset(str(source), output)

    assert not report.unchanged
    assert (output / "rows.jsonl").read_bytes() == source.read_bytes()


def test_rows_of_another_source_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_bytes(LINES)
    download_dataset(str(tmp_path / "a/data.jsonl"), tmp_path / "out")

    assert not download_dataset(str(tmp_path / "b/data.jsonl"), tmp_path / "out").unchanged


def test_what_a_killed_process_left_beside_its_bytes_is_removed(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    leftover = tmp_path / "out/.osft-download/unpacked"
    leftover.mkdir(parents=True)
    (leftover / "file").write_bytes(LINES)

    download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    assert not (tmp_path / "out/.osft-download").exists()


def test_one_process_waits_for_another_that_downloads_to_the_same_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "data.jsonl").write_bytes(LINES)
    (tmp_path / "out").mkdir()
    other = FileLock(tmp_path / "out/.osft-download.lock")
    other.acquire()
    waiting = Thread(target=download_dataset, args=(str(tmp_path / "data.jsonl"), tmp_path / "out"))
    waiting.start()
    while "another process downloads to" not in caplog.text:
        waiting.join(0.01)

    rows_came_early = (tmp_path / "out/rows.jsonl").exists()
    other.release()
    waiting.join()

    assert not rows_came_early
    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES


def test_runs_share_what_was_fetched_for_the_first_of_them(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    workspace = Workspace(tmp_path)
    first = download_into_run("pvc://data.jsonl", tmp_path / "runs/1/raw", workspace)

    second = download_into_run("pvc://data.jsonl", tmp_path / "runs/2/raw", workspace)

    assert (first.unchanged, second.unchanged) == (False, True)
    for run in ("1", "2"):
        assert sorted(path.name for path in (tmp_path / "runs" / run / "raw").iterdir()) == [
            "rows.jsonl",
            "source.json",
        ]
    assert (tmp_path / "runs/1/raw/rows.jsonl").samefile(tmp_path / "runs/2/raw/rows.jsonl")


def test_a_changed_source_leaves_an_earlier_run_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    download_into_run("pvc://data.jsonl", tmp_path / "runs/1/raw", Workspace(tmp_path))
    (tmp_path / "data.jsonl").write_bytes(b"3\n")

    download_into_run("pvc://data.jsonl", tmp_path / "runs/2/raw", Workspace(tmp_path))

    assert (tmp_path / "runs/1/raw/rows.jsonl").read_bytes() == LINES
    assert (tmp_path / "runs/2/raw/rows.jsonl").read_bytes() == b"3\n"


def test_files_that_come_while_a_process_waits_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for folder in ("data", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/a.jsonl").write_bytes(LINES)
    other = FileLock(tmp_path / "out/.osft-download.lock")
    other.acquire()
    waiting = Thread(target=download_dataset, args=(str(tmp_path / "data"), tmp_path / "out"))
    waiting.start()
    while "another process downloads to" not in caplog.text:
        waiting.join(0.01)

    (tmp_path / "data/b.jsonl").write_bytes(LINES)
    other.release()
    waiting.join()

    assert (tmp_path / "out/rows.jsonl").read_bytes() == LINES * 2


def test_folders_and_lock_are_open_to_the_group(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    before = os.umask(0o077)
    try:
        download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "new/out")
    finally:
        os.umask(before)

    modes = [(tmp_path / "new" / name).stat().st_mode & 0o777 for name in ("", "out", "out/.osft-download.lock")]
    assert modes == [0o775, 0o775, 0o664]


def file_as_output(output: Path) -> None:
    output.touch()


def folder_as_rows(output: Path) -> None:
    (output / "rows.jsonl").mkdir(parents=True)


def folder_as_report(output: Path) -> None:
    (output / "source.json").mkdir(parents=True)


def file_as_scratch(output: Path) -> None:
    output.mkdir()
    (output / ".osft-download").touch()


def link_as_scratch(output: Path) -> None:
    output.mkdir()
    (output / ".osft-download").symlink_to(output.parent)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (file_as_output, "output '.*out' cannot be written to .*File exists"),
        (folder_as_rows, "rows.jsonl' is a folder, but a file of that name is to be written"),
        (folder_as_report, "source.json' is a folder, but a file of that name is to be written"),
        (file_as_scratch, "cannot be written to .*osft-download: File exists"),
        (link_as_scratch, "osft-download' is a link, and what it leads to would be removed"),
    ],
)
def test_an_output_that_cannot_be_written_to_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    spoil(tmp_path / "out")

    with pytest.raises(ConfigError, match=message):
        download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    assert (tmp_path / "data.jsonl").read_bytes() == LINES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    (tmp_path / "out").mkdir(mode=0o555)

    with pytest.raises(ConfigError, match=r"output '.*out' cannot be written to .*Permission denied"):
        download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")


def test_a_user_s_own_folder_named_download_stays(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    (tmp_path / "out/.download").mkdir(parents=True)
    (tmp_path / "out/.download/file").touch()

    download_dataset(str(tmp_path / "data.jsonl"), tmp_path / "out")

    assert (tmp_path / "out/.download/file").exists()
