from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.data.validation.validate import validate_dataset
from osft.errors import DataError


def findings_of(source: Path, output: Path, **options: Any) -> list[tuple[int, str, str]]:
    """Validate, whatever comes of it, and return line, code and path of each finding."""
    with suppress(DataError):
        validate_dataset(source, output, **options)
    report = orjson.loads((output / "validation.json").read_bytes())
    assert report["rows_in"] == report["rows_valid"] + report["rows_quarantined"]
    return [(item["line"], item["code"], item["path"]) for item in report["findings"]]


@pytest.mark.parametrize(
    ("data_format", "row"),
    [
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": 1}),
        ("alpaca", {"instruction": "Q", "input": "", "output": "A", "id": 1}),
        ("prompt_completion", {"prompt": "Q", "completion": "A", "id": 1}),
    ],
)
@pytest.mark.parametrize("is_asked_for", [True, False])
def test_a_foreign_shape_is_converted_to_messages(
    tmp_path: Path, write_rows: Callable[..., Path], data_format: str, row: dict[str, Any], is_asked_for: bool
) -> None:
    report = validate_dataset(
        write_rows(row, row), tmp_path / "out", data_format=data_format if is_asked_for else "auto"
    )

    messages_of_row = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    written = [orjson.loads(line) for line in (tmp_path / "out/valid.jsonl").read_bytes().splitlines()]
    assert written == [{"id": 1, "messages": messages_of_row}] * 2
    assert (report.output_format, report.shapes) == ("messages", {data_format: 2})
    assert (report.roles, report.extra_keys) == ({"user": 2, "assistant": 2}, {"id": 2})
    assert report.rows_duplicated == 1


def test_a_problem_of_a_converted_row_is_told_in_terms_of_the_row_as_it_was(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": " "}]
    source = write_rows({"conversations": turns}, {"conversations": [{"from": "bat", "value": "x"}]})

    findings = findings_of(source, tmp_path / "out", data_format="sharegpt")

    assert findings == [
        (1, "content-empty", "conversations[1].value"),
        (2, "sharegpt-speaker-unknown", "conversations[0].from"),
    ]
    quarantined = orjson.loads((tmp_path / "out/quarantine.jsonl").read_bytes().splitlines()[0])
    assert orjson.loads(quarantined["raw"]) == {"conversations": turns}


def test_auto_says_what_it_found_and_refuses_other_families(
    tmp_path: Path, write_rows: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    native = '{"messages":[{"role":"user", "content":"Q"},{"role":"assistant","content":"\\u0041"}]}'
    alpaca = {"instruction": "Q", "output": "A"}
    source = write_rows("{", {"x": 1}, alpaca, native, {"document": "A text."}, alpaca)

    findings = findings_of(source, tmp_path / "out", data_format="auto", on_invalid="drop")

    assert [(line, code) for line, code, _ in findings] == [
        (1, "truncated-line"), (2, "format-unknown"), (5, "other-format"),
    ]  # fmt: skip
    assert (tmp_path / "out/valid.jsonl").read_bytes().splitlines()[1] == native.encode()
    assert "data_format auto: found 2 rows of alpaca, 1 of messages, 1 of documents" in caplog.text


@pytest.mark.parametrize(
    ("row", "output_format"),
    [({"text": "A text."}, "documents"), ({"input_ids": [1, 2], "labels": [1, 2]}, "processed")],
)
def test_auto_takes_documents_and_token_ids_for_what_they_are(
    tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any], output_format: str
) -> None:
    source = write_rows(row)

    report = validate_dataset(source, tmp_path / "out", data_format="auto", document_column="text")

    assert (report.output_format, report.shapes) == (output_format, {output_format: 1})
    assert (tmp_path / "out/valid.jsonl").read_bytes() == source.read_bytes()


def test_auto_without_a_known_row_refuses_them_all(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    findings = findings_of(write_rows({"x": 1}, "[]"), tmp_path / "out", data_format="auto")

    assert [(line, code) for line, code, _ in findings] == [(1, "format-unknown"), (2, "not-an-object")]
