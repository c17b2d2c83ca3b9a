import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osft.content_cache import content_key
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement
from osft.evaluation.store import MeasurementStore

KEY = content_key({"model": "one", "task": "letters"})
MEASUREMENT = TaskMeasurement(
    task="letters",
    metric="acc",
    higher_is_better=True,
    value=0.5,
    other_values={"acc_norm": 0.75},
    documents=tuple(
        DocumentMeasurement(
            doc_id=number, fingerprint=f"{number}:a", score=number % 2, prompt="Which?", gold="a", answer="b"
        )
        for number in range(2)
    ),
    version="1.0",
    num_fewshot=0,
)


def kept_file(root: Path) -> Path:
    (file,) = root.rglob("*.parquet")
    return file


def test_measurement_is_taken_as_it_was_kept(tmp_path: Path) -> None:
    MeasurementStore(tmp_path).keep(KEY, MEASUREMENT)

    assert MeasurementStore(tmp_path).take(KEY) == MEASUREMENT


def test_measurement_is_not_taken_under_another_key(tmp_path: Path) -> None:
    MeasurementStore(tmp_path).keep(KEY, MEASUREMENT)

    assert MeasurementStore(tmp_path).take(content_key({"model": "two", "task": "letters"})) is None


def test_store_without_a_folder_keeps_nothing() -> None:
    MeasurementStore(None).keep(KEY, MEASUREMENT)

    assert MeasurementStore(None).take(KEY) is None


def test_later_measurement_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.keep(KEY, MEASUREMENT)

    store.keep(KEY, replace(MEASUREMENT, value=0.25))

    assert store.take(KEY) == replace(MEASUREMENT, value=0.25)
    assert [file.name for file in kept_file(tmp_path).parent.iterdir()] == [f"{KEY}.parquet"]


@pytest.mark.parametrize("num_bytes", [0, 3, 100, -1])
def test_shortened_file_is_a_warning_and_replaced_by_the_next_measurement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_bytes: int
) -> None:
    store = MeasurementStore(tmp_path)
    store.keep(KEY, MEASUREMENT)
    kept_file(tmp_path).write_bytes(kept_file(tmp_path).read_bytes()[:num_bytes])

    with caplog.at_level(logging.WARNING):
        taken = store.take(KEY)
    store.keep(KEY, MEASUREMENT)

    assert taken is None
    assert "the task is measured again" in caplog.text
    assert store.take(KEY) == MEASUREMENT


def test_file_of_another_format_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MeasurementStore(tmp_path)
    store.keep(KEY, MEASUREMENT)
    pq.write_table(pa.table({"doc_id": [1]}), kept_file(tmp_path))

    assert store.take(KEY) is None
    assert "the task is measured again" in caplog.text


def test_folder_that_cannot_be_used_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    store = MeasurementStore(tmp_path / "file")

    store.keep(KEY, MEASUREMENT)

    assert "task 'letters': the measurement cannot be kept" in caplog.text
    assert store.take(KEY) is None


def test_writers_and_readers_of_one_key_never_meet_half_a_file(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    store.keep(KEY, MEASUREMENT)

    with ThreadPoolExecutor(4) as threads:
        writes = [threads.submit(store.keep, KEY, MEASUREMENT) for _ in range(20)]
        reads = [threads.submit(store.take, KEY) for _ in range(20)]

    assert [write.result() for write in writes] == [None] * 20
    assert [read.result() for read in reads] == [MEASUREMENT] * 20
