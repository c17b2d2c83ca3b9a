import importlib.metadata
from pathlib import Path

import pytest

from osft.evaluation.task_index import CACHE_NAME, own_tasks


@pytest.mark.slow
def test_kept_index_is_the_one_that_was_built(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / CACHE_NAME / f"lm-eval-{importlib.metadata.version('lm-eval')}.json"
    file.parent.mkdir()
    file.write_text("[")

    built, kept = own_tasks(tmp_path), own_tasks(tmp_path)

    assert "no index of tasks" in caplog.text
    assert {name: (entry.kind, entry.yaml_path, entry.tags) for name, entry in kept.items()} == {
        name: (entry.kind, entry.yaml_path, entry.tags) for name, entry in built.items()
    }
    assert kept["arc_easy"].yaml_path.is_file()


@pytest.mark.slow
def test_index_that_cannot_be_kept_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")

    index = own_tasks(tmp_path / "file")

    assert "arc_easy" in index
    assert "the index of tasks cannot be kept" in caplog.text
