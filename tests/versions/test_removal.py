"""Removing and measuring folders while other processes do the same."""

from pathlib import Path

import pytest

from osft.versions.removal import delete, left_aside, remove_folder, size_of, walk


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a file in each of two folders, and one beside them."""
    for name in ("run/a/one", "run/b/two", "run/three"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path / "run"


def test_the_size_of_a_folder_is_that_of_its_files(tree: Path) -> None:
    assert (size_of(tree), size_of(tree / "three")) == (15, 5)


def test_a_file_counts_only_where_its_last_name_is(tree: Path) -> None:
    (tree / "a/again").hardlink_to(tree / "a/one")
    (tree / "c").hardlink_to(tree / "b/two")

    assert size_of(tree) == 15
    assert (size_of(tree / "a"), size_of(tree / "b"), size_of(tree / "c")) == (5, 0, 0)
    assert size_of(tree / "b", tree / "c") == 5


def test_what_is_gone_has_no_size(tmp_path: Path) -> None:
    assert size_of(tmp_path / "gone") == 0


def test_folders_that_vanish_while_they_are_listed_are_passed_over(tree: Path) -> None:
    entries = walk(tree)
    first, _ = next(entries)
    delete(tree / "a")
    (tree / "three").unlink()

    rest = {path.relative_to(tree).as_posix() for path, _ in entries}

    assert first == tree
    assert rest == {"b", "b/two"}


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tree: Path) -> None:
    loop = tree.parent / "loop"
    loop.symlink_to(loop)

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        list(walk(loop))


def test_a_folder_is_removed_once(tree: Path) -> None:
    assert [remove_folder(tree), remove_folder(tree)] == [True, False]
    assert list(tree.parent.iterdir()) == []


def test_a_removal_whose_place_aside_is_taken_for_a_leftover_is_done_all_the_same(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_after_another_process(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        for leftover in left_aside(tree.parent):
            remove_folder(leftover)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another_process)

    assert remove_folder(tree)
    assert list(tree.parent.iterdir()) == []


def test_the_name_of_what_is_aside_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = tmp_path / ".run-1.removed.x1y2"
    aside.mkdir()
    targets: list[Path] = []
    rename = Path.rename

    def remember(self: Path, target: Path) -> Path:
        targets.append(target.parent)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", remember)

    remove_folder(aside)

    assert [target.name.count(".removed.") for target in targets] == [1]
