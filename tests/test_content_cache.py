from pathlib import Path

import pytest

from osft.content_cache import ContentCache, content_key, link_files


def make_file(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "a.txt"
    file.write_text(content)
    return file


def test_equal_parts_have_equal_keys_whatever_their_order() -> None:
    assert content_key({"a": 1, "b": Path("x")}) == content_key({"b": "x", "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_what_is_kept_is_linked_into_another_folder(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    file = make_file(tmp_path / "made", "content")

    missed = cache.take("key", tmp_path / "taken", ["a.txt"])
    cache.keep("key", [file])
    found = cache.take("key", tmp_path / "taken", ["a.txt"])

    assert (missed, found) == (False, True)
    assert (tmp_path / "taken/a.txt").samefile(file)


def test_the_first_entry_of_a_key_stays(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    cache.keep("key", [make_file(tmp_path / "first", "first")])

    cache.keep("key", [make_file(tmp_path / "second", "second")])

    assert (cache.entry("key") / "a.txt").read_text() == "first"
    assert [path.name for path in cache.root.iterdir()] == ["key"]


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    file = make_file(tmp_path / "made", "content")

    link_files([file], tmp_path / "taken")

    assert (tmp_path / "taken/a.txt").read_text() == "content"
    assert not (tmp_path / "taken/a.txt").samefile(file)


def test_a_missing_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_files([tmp_path / "none"], tmp_path / "taken")

    assert list((tmp_path / "taken").iterdir()) == []
