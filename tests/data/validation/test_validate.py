import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from osft.data.validation import report as validation_report
from osft.data.validation import validate as messages
from osft.data.validation.validate import validate_dataset
from osft.errors import ConfigError, DataError, MissingPathError

USER = {"role": "user", "content": "What is iron?"}
ASSISTANT = {"role": "assistant", "content": "Fe."}


def findings_of(source: Path, output: Path, **options: Any) -> list[tuple[int, str, str]]:
    """Validate, whatever comes of it, and return line, code and path of each finding."""
    with suppress(DataError):
        validate_dataset(source, output, **options)
    report = orjson.loads((output / "validation.json").read_bytes())
    assert report["rows_in"] == report["rows_valid"] + report["rows_quarantined"]
    return [(item["line"], item["code"], item["path"]) for item in report["findings"]]


def test_valid_rows_are_copied_byte_for_byte(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    spaced = '{ "messages" : [{"role":"user","content":"\\u00e9"}, {"role":"assistant","content":"b"}], "id": 1.50 }\r'
    source = write_rows(spaced, {"messages": [USER, ASSISTANT], "unmask": True})

    report = validate_dataset(source, tmp_path / "out")

    assert (tmp_path / "out/valid.jsonl").read_bytes() == source.read_bytes()
    assert (tmp_path / "out/quarantine.jsonl").read_bytes() == b""
    assert (report.rows_in, report.rows_valid, report.findings_total) == (2, 2, 0)
    assert report.roles == {"user": 2, "assistant": 2}
    assert report.turns == {"2": 2}
    assert report.extra_keys == {"id": 1}
    assert (report.output_format, report.shapes, report.accepted) == ("messages", {"messages": 2}, True)


def test_the_source_may_be_a_folder_that_holds_rows(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    write_rows({"messages": [USER, ASSISTANT]}, name="rows.jsonl")

    report = validate_dataset(tmp_path, tmp_path / "out")

    assert report.source == "rows.jsonl"


@pytest.mark.parametrize(
    ("row", "code", "path"),
    [
        ({}, "messages-missing", "messages"),
        ({"messages": "x"}, "messages-not-a-list", "messages"),
        ({"messages": []}, "messages-empty", "messages"),
        ({"messages": [USER, "x", ASSISTANT]}, "message-not-an-object", "messages[1]"),
        ({"messages": [{"content": "x"}, ASSISTANT]}, "role-missing", "messages[0].role"),
        ({"messages": [{"role": "human", "content": "x"}, ASSISTANT]}, "role-unknown", "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}, ASSISTANT]}, "role-unknown", "messages[0].role"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, "content-missing", "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}, ASSISTANT]}, "content-not-text", "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}, ASSISTANT]}, "content-not-text", "messages[0].content"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "content-empty", "messages[1].content"),
        ({"messages": [USER, {"role": "assistant", "content": "a\0"}]}, "content-has-nul", "messages[1].content"),
        ({"messages": [USER, ASSISTANT] * 501}, "too-many-turns", "messages"),
        ({"messages": [USER]}, "no-assistant-turn", "messages"),
        ({"messages": [{"role": "system", "content": "x"}], "unmask": True}, "no-assistant-turn", "messages"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]}, "system-not-first", "messages[1].role"),
        ({"messages": [{"role": "system", "content": "x"}] * 2 + [ASSISTANT]}, "system-repeated", "messages[1].role"),
        ({"messages": [USER, ASSISTANT], "unmask": "yes"}, "unmask-not-boolean", "unmask"),
        (
            {"messages": [{**USER, "reasoning_content": "x"}, ASSISTANT]},
            "reasoning-not-on-assistant",
            "messages[0].reasoning_content",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning_content": 1}]},
            "reasoning-not-text",
            "messages[1].reasoning_content",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning_content": "\0"}]},
            "reasoning-has-nul",
            "messages[1].reasoning_content",
        ),
    ],
)
def test_a_row_outside_the_schema_gives_a_finding(
    tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any], code: str, path: str
) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]}, row)

    findings = findings_of(source, tmp_path / "out")

    assert findings == [(2, code, path)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "pretraining", "content": "A whole text."}]},
        {"messages": [USER], "unmask": True},
        {"messages": [USER, ASSISTANT], "unmask": None},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER]},
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "Ferrum."}]},
        {"messages": [USER, {**ASSISTANT, "reasoning_content": None}]},
        {"messages": [USER, {**ASSISTANT, "name": "bot"}], "source": "book"},
    ],
)
def test_a_row_inside_the_schema_is_valid(tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any]) -> None:
    report = validate_dataset(write_rows(row), tmp_path / "out")

    assert report.rows_valid == 1


def test_every_problem_of_a_row_is_found(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [{"role": "human", "content": ""}, {"role": "system", "content": 1}], "unmask": 1})

    codes = {code for _, code, _ in findings_of(source, tmp_path / "out")}

    assert codes == {
        "unmask-not-boolean", "role-unknown", "content-empty", "content-not-text", "system-not-first",
        "no-assistant-turn",
    }  # fmt: skip


def test_blank_lines_are_counted_and_keep_their_number(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows("", {"messages": [USER, ASSISTANT]}, " \r", "{")

    report = validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.5)

    assert (report.blank_lines, report.rows_in, report.rows_valid) == (2, 2, 1)
    assert report.findings[0].line == 4


def test_a_last_line_without_newline_is_a_row(tmp_path: Path) -> None:
    source = tmp_path / "valid.jsonl"
    source.write_bytes(json.dumps({"messages": [USER, ASSISTANT]}).encode())

    report = validate_dataset(source, tmp_path / "out")

    assert report.rows_valid == 1
    assert (tmp_path / "out/valid.jsonl").read_bytes() == source.read_bytes() + b"\n"


def test_fail_names_the_count_and_the_first_rows(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]}, *["{"] * 5)

    with pytest.raises(DataError, match=r"5 of 6 rows .*\(line 2, row: .*\[truncated-line\]; .*and 2 more\)") as caught:
        validate_dataset(source, tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert len((tmp_path / "out/quarantine.jsonl").read_bytes().splitlines()) == 5


def test_drop_goes_on_up_to_the_fraction(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]}, "{")

    report = validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.5)

    assert (report.rows_valid, report.rows_quarantined) == (1, 1)


def test_drop_beyond_the_fraction_fails(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]}, "{")

    with pytest.raises(DataError, match=r"0\.5000, more than max_invalid_fraction 0\.4"):
        validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.4)


def test_no_valid_row_left_fails(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no valid row is left"):
        validate_dataset(write_rows("{"), tmp_path / "out", on_invalid="drop", max_invalid_fraction=1.0)


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_a_file_without_rows_fails(tmp_path: Path, write_rows: Callable[..., Path], lines: list[str]) -> None:
    with pytest.raises(DataError, match="the file holds no rows"):
        validate_dataset(write_rows(*lines), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"rows\.jsonl: there is no such file"):
        validate_dataset(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_invalid": "skip"}, "on_invalid is 'skip'; allowed are fail, drop"),
        ({"max_invalid_fraction": 1.5}, r"max_invalid_fraction is 1\.5; allowed is a number from 0 to 1"),
        ({"max_invalid_fraction": float("nan")}, "max_invalid_fraction is nan"),
        (
            {"data_format": "csv"},
            "data_format is 'csv'; allowed are auto, messages, sharegpt, .*, documents, processed",
        ),
    ],
)
def test_a_bad_parameter_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_dataset(tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("row", "code", "path"),
    [
        ({"labels": [1]}, "input-ids-missing", "input_ids"),
        ({"input_ids": "1", "labels": [1]}, "input-ids-not-a-list", "input_ids"),
        ({"input_ids": [], "labels": [1]}, "input-ids-empty", "input_ids"),
        ({"input_ids": [1, True], "labels": [1, 1]}, "input-ids-not-integers", "input_ids[1]"),
        ({"input_ids": [1, -1], "labels": [1, 1]}, "input-ids-not-integers", "input_ids[1]"),
        ({"input_ids": [1, 2**31], "labels": [1, 1]}, "input-ids-not-integers", "input_ids[1]"),
        ({"input_ids": [1], "labels": [1.5]}, "labels-not-integers", "labels[0]"),
        ({"input_ids": [1, 2], "labels": [2, 2, 2]}, "length-mismatch", "labels"),
        ({"input_ids": [1, 2], "labels": [2, -5]}, "label-negative", "labels[1]"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no-trained-label", "labels"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "no-trained-label", "labels"),
    ],
)
def test_a_processed_row_is_checked(
    tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any], code: str, path: str
) -> None:
    source = write_rows({"input_ids": [1, 2], "labels": [-100, 2]}, row)

    assert findings_of(source, tmp_path / "out", data_format="processed") == [(2, code, path)]


@pytest.mark.parametrize(
    ("row", "code"),
    [({}, "document-missing"), ({"text": 1}, "document-not-text"), ({"text": " "}, "document-empty")],
)
def test_a_document_is_checked_in_its_column(
    tmp_path: Path, write_rows: Callable[..., Path], row: dict[str, Any], code: str
) -> None:
    source = write_rows({"text": "A text."}, row)

    findings = findings_of(source, tmp_path / "out", data_format="documents", document_column="text")

    assert findings == [(2, code, "text")]


def test_the_report_caps_its_lists_but_counts_all(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_report, "MAX_REPORTED_FINDINGS", 3)
    monkeypatch.setattr(validation_report, "MAX_EXTRA_KEYS", 2)
    good = [{"messages": [USER, ASSISTANT], f"key{index}": 1} for index in range(10)]
    source = write_rows(*good, *["{"] * 10)

    report = validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.5)

    assert (len(report.findings), report.findings_total, report.counts_by_code) == (3, 10, {"truncated-line": 10})
    assert report.extra_keys == {"(other keys)": 8, "key0": 1, "key1": 1}
    assert len((tmp_path / "out/quarantine.jsonl").read_bytes().splitlines()) == 10


def test_an_output_that_would_overwrite_the_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "valid.jsonl"
    source.write_text('{"messages": []}\n')

    with pytest.raises(ConfigError, match="would overwrite the source"):
        validate_dataset(source, tmp_path)

    assert source.read_text() == '{"messages": []}\n'


def test_a_finding_tells_the_byte_at_which_its_line_starts(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [{"role": "user", "content": "é"}, ASSISTANT]}, "", "{}")

    report = validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.5)

    finding = report.findings[0]
    assert (finding.file, finding.line, finding.origin) == (source.name, 3, None)
    assert source.read_bytes()[finding.offset :] == b"{}\n"


def test_a_finding_names_the_file_that_its_row_came_from(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    row = {"messages": [USER, ASSISTANT]}
    write_rows(row, row, "{}", row, name="rows.jsonl")
    files = [
        {"name": "a.jsonl", "first_line": 1, "lines": 2},
        {"name": "empty.jsonl", "first_line": 3, "lines": 0},
        {"name": "b.jsonl.gz", "first_line": 3, "lines": 2},
    ]
    (tmp_path / "source.json").write_text(json.dumps({"uri": "x", "files": files}))

    report = validate_dataset(tmp_path, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.5)

    quarantined = orjson.loads((tmp_path / "out/quarantine.jsonl").read_bytes())
    assert report.findings[0].origin == quarantined["origin"] == "b.jsonl.gz, line 1"
    assert [warning.origin for warning in report.warnings] == ["a.jsonl, line 2", "b.jsonl.gz, line 2"]


@pytest.mark.parametrize("text", ["{", "[]", '{"files": [{"lines": 3}]}'])
def test_a_damaged_source_json_is_named(tmp_path: Path, write_rows: Callable[..., Path], text: str) -> None:
    write_rows({"messages": [USER, ASSISTANT]}, name="rows.jsonl")
    (tmp_path / "source.json").write_text(text)

    with pytest.raises(DataError, match=r"source\.json: this is no source\.json of a download"):
        validate_dataset(tmp_path, tmp_path / "out")


def test_rows_that_train_the_same_stay_and_are_warned_of(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    row = json.dumps({"messages": [USER, ASSISTANT]})
    source = write_rows(row, {"messages": [USER, ASSISTANT], "id": 2}, row + " ", row)

    report = validate_dataset(source, tmp_path / "out")

    found = [(item.line, item.code, item.message.split(";")[0]) for item in report.warnings]
    text = "The row equals that of line 1"
    assert found == [(2, "duplicate-row", text), (3, "duplicate-row", text), (4, "duplicate-row", text)]
    assert (report.rows_duplicated, report.counts_by_warning) == (3, {"duplicate-row": 3})
    assert report.rows_valid == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "quarantine.jsonl", "seen_rows.bin", "valid.jsonl", "validation.json",
    ]  # fmt: skip


def test_lengths_are_counted_below_powers_of_two(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    texts = ["1234", "12345", "12345678", "123456789"]
    rows = [{"messages": [{"role": "user", "content": text}, ASSISTANT], "id": text} for text in texts]

    report = validate_dataset(write_rows(*rows), tmp_path / "out")

    assert report.content_characters == {"assistant": {"4": 4}, "user": {"4": 1, "8": 2, "16": 1}}
    assert report.row_bytes == {"128": 4}


def test_the_report_is_saved_as_it_is_returned(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}, "{")

    report = validate_dataset(source, tmp_path / "out", on_invalid="drop", max_invalid_fraction=0.4)

    assert orjson.loads((tmp_path / "out/validation.json").read_bytes()) == json.loads(json.dumps(asdict(report)))


def test_a_refused_file_says_so_in_its_report(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="1 of 1 rows"):
        validate_dataset(write_rows("{"), tmp_path / "out")

    assert orjson.loads((tmp_path / "out/validation.json").read_bytes())["accepted"] is False


@pytest.mark.slow
@pytest.mark.parametrize("data_format", ["messages", "auto"])
def test_several_processes_give_the_files_that_one_gives(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, data_format: str
) -> None:
    rows = [{"messages": [USER, {"role": "assistant", "content": f"{index % 90}."}]} for index in range(100)]
    source = write_rows(*rows, "{", *rows)
    validate_dataset(source, tmp_path / "one", data_format=data_format, on_invalid="drop", max_invalid_fraction=0.5)
    monkeypatch.setattr(messages, "CHUNK_BYTES", 2_000)
    monkeypatch.setattr(messages, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(messages, "count_processes", lambda: 2)

    validate_dataset(source, tmp_path / "two", data_format=data_format, on_invalid="drop", max_invalid_fraction=0.5)

    for name in ("valid.jsonl", "quarantine.jsonl", "validation.json", "seen_rows.bin"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_row_without_an_assistant_turn_is_valid_when_all_messages_are_trained(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"messages": [{"role": "user", "content": "Iron is Fe."}]}\n')

    report = validate_dataset(source, tmp_path / "out", unmask_messages=True)

    assert report.rows_valid == 1
    with pytest.raises(DataError, match="no-assistant-turn"):
        validate_dataset(source, tmp_path / "masked")


@pytest.mark.parametrize(
    ("start", "kind"), [(gzip.compress(b"{}", mtime=0), "gzip"), (b"PAR1....", "parquet"), (b"PK\x03\x04..", "zip")]
)
def test_a_file_of_another_kind_is_named_with_the_mend(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "my.jsonl.gz").write_bytes(start)

    with pytest.raises(DataError, match=rf"my\.jsonl\.gz: this is a {kind} file, .*Run 'osft download'"):
        validate_dataset(tmp_path / "my.jsonl.gz", tmp_path / "out")


def test_while_rows_are_checked_no_older_report_stands_beside_them(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows({"messages": [USER, ASSISTANT]})
    validate_dataset(source, tmp_path / "out")
    (tmp_path / "out/validation.html").write_text("an older page")
    monkeypatch.setattr(messages, "split_into_chunks", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        validate_dataset(source, tmp_path / "out")

    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["quarantine.jsonl", "seen_rows.bin", "valid.jsonl"]
