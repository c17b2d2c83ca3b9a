from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.errors import EvaluationError
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
documents = st.builds(
    DocumentMeasurement,
    doc_id=st.integers(0, 2**40),
    fingerprint=texts,
    score=st.none() | numbers,
    weight=numbers,
    prompt=texts,
    gold=texts,
    answer=texts,
)
measurements = st.builds(
    TaskMeasurement,
    task=texts,
    metric=texts,
    higher_is_better=st.booleans(),
    value=numbers,
    other_values=st.dictionaries(texts, numbers, max_size=3),
    documents=st.lists(documents, max_size=5).map(tuple),
    version=texts,
    num_fewshot=st.integers(0, 10),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measurements")


@settings(max_examples=40, deadline=None)
@given(measurement=measurements)
def test_measurement_is_read_as_it_was_written(folder: Path, measurement: TaskMeasurement) -> None:
    measurement.save(folder / "kept.parquet")

    assert TaskMeasurement.load(folder / "kept.parquet") == measurement


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_turned_bit_never_gives_another_measurement(folder: Path, data: st.DataObject) -> None:
    document = DocumentMeasurement(doc_id=1, fingerprint="a:b", score=0.5, prompt="Which?", gold="a", answer="b")
    measurement = TaskMeasurement(
        task="letters",
        metric="acc",
        higher_is_better=True,
        value=0.5,
        other_values={"f1": 0.25},
        documents=(document,),
        version="1.0",
        num_fewshot=5,
    )
    measurement.save(folder / "damaged.parquet")
    content = bytearray((folder / "damaged.parquet").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "damaged.parquet").write_bytes(content)

    try:
        read = TaskMeasurement.load(folder / "damaged.parquet")
    except EvaluationError as error:
        assert "Delete it and evaluate again" in str(error)
    else:
        assert read == measurement


def test_changed_value_is_an_error(tmp_path: Path) -> None:
    document = DocumentMeasurement(doc_id=1, fingerprint="a:b", score=0.5, prompt="Which?", gold="a", answer="b")
    measurement = TaskMeasurement(
        task="letters",
        metric="acc",
        higher_is_better=True,
        value=0.5,
        other_values={},
        documents=(document,),
        version="1.0",
        num_fewshot=0,
    )
    measurement.save(tmp_path / "kept.parquet")
    table = pq.read_table(tmp_path / "kept.parquet")
    column = table.schema.get_field_index("score")
    pq.write_table(table.set_column(column, "score", pa.array([1.0])), tmp_path / "kept.parquet")

    with pytest.raises(EvaluationError, match="the file is damaged, its checksum differs"):
        TaskMeasurement.load(tmp_path / "kept.parquet")


def test_file_that_is_no_measurement_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc_id": [1]}), tmp_path / "other.parquet")

    with pytest.raises(EvaluationError, match=r"other.parquet: no measurement of a task .* Delete it"):
        TaskMeasurement.load(tmp_path / "other.parquet")


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.parquet: no measurement of a task"):
        TaskMeasurement.load(tmp_path / "none.parquet")
