"""What was measured of one model on one task, and the file it is kept in.

A measurement holds plain values only, so that one of a known model can be kept, read back by another process and
paired with another model's. Its file is parquet, one row a document (prompts repeat their examples, and compress to
a tenth); what is said of the whole task stands in the schema's metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from osft.errors import EvaluationError, one_line
from osft.workspace import atomic_file

METADATA_KEY = b"osft.measurement"
CHECKSUM_KEY = b"osft.measurement.sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentMeasurement:
    """One model's result on one document."""

    doc_id: int
    fingerprint: str
    """Hash of the document, its right answer and all that the model was asked of it, with how it was to answer: equal
    for two models, or they are not comparable."""

    score: float | None
    """What the task's score joins over the documents; None where the metric gives a document no number."""

    weight: float = 1.0
    """What the document counts for in the task's score: its words or bytes in a perplexity, else 1."""

    prompt: str
    gold: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMeasurement:
    """One model's result on one task."""

    task: str
    metric: str
    higher_is_better: bool
    value: float
    """lm-eval's score of the task."""

    other_values: Mapping[str, float]
    """lm-eval's other scores of the task, by metric name."""

    documents: tuple[DocumentMeasurement, ...]
    version: str
    num_fewshot: int

    def save(self, path: Path) -> None:
        """Write the measurement, atomically."""
        summary = json.dumps({name: value for name, value in _fields(self).items() if name != "documents"}).encode()
        table = pa.Table.from_pylist([asdict(document) for document in self.documents], schema=_SCHEMA)
        checksum = _checksum(summary, table.to_pylist())
        table = table.replace_schema_metadata({METADATA_KEY: summary, CHECKSUM_KEY: checksum})
        with atomic_file(path) as file:
            pq.write_table(table, file, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "TaskMeasurement":
        """Read a measurement back.

        Raises:
            EvaluationError: if there is no such file, it is no measurement, or any of it changed since it was written.
        """
        try:
            table = pq.read_table(path)
            metadata, rows = table.schema.metadata or {}, table.to_pylist()
            documents = tuple(DocumentMeasurement(**row) for row in rows)
            measurement = cls(documents=documents, **json.loads(metadata[METADATA_KEY]))
            is_whole = metadata[CHECKSUM_KEY] == _checksum(metadata[METADATA_KEY], rows)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}: no measurement of a task ({one_line(error)}). Delete it and evaluate again."
            ) from error
        if not is_whole:
            raise EvaluationError(f"{path}: the file is damaged, its checksum differs. Delete it and evaluate again.")
        return measurement


def measurement_path(folder: Path, task: str) -> Path:
    """Return where a folder of measurements has that of a task, whose name may be any text."""
    return folder / f"{quote(task, safe='')}.parquet"


def save_measurements(measurements: Mapping[str, TaskMeasurement], folder: Path) -> None:
    """Write a file for each task, for :func:`measurement_path` to find."""
    for task, measurement in measurements.items():
        measurement.save(measurement_path(folder, task))


_SCHEMA = pa.schema(
    {
        "doc_id": pa.int64(),
        "fingerprint": pa.string(),
        "score": pa.float64(),
        "weight": pa.float64(),
        "prompt": pa.string(),
        "gold": pa.string(),
        "answer": pa.string(),
    }
)


def _checksum(summary: bytes, rows: list[dict[str, Any]]) -> bytes:
    """Return the sha256 of all values, as hexadecimal text: parquet does not notice every bit that a disk turns."""
    return sha256(summary + orjson.dumps(rows, option=orjson.OPT_SORT_KEYS)).hexdigest().encode()


def _fields(measurement: TaskMeasurement) -> dict[str, Any]:
    return {name: getattr(measurement, name) for name in TaskMeasurement.__dataclass_fields__}
