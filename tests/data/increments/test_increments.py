"""Validation that takes what is new, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osft.data.download.download import download_dataset
from osft.data.increments.increment import Increment
from osft.data.processing.process import process_dataset
from osft.data.processing.report import ProcessingConfig
from osft.data.validation import validate
from osft.data.validation.page import write_validation_page
from osft.data.validation.report import ValidationReport
from osft.data.validation.validate import validate_dataset
from osft.errors import ConfigError, DataError, MissingPathError

SINCE = datetime(2026, 11, 1, tzinfo=UTC)
TIMED = Increment(since=SINCE, time_column="at")


def facts(*numbers: int) -> list[dict[str, Any]]:
    """Return one conversation for each number."""
    return [
        {
            "id": f"row {number}",
            "messages": [
                {"role": "user", "content": f"Name of element {number}?"},
                {"role": "assistant", "content": f"Element {number}."},
            ],
        }
        for number in numbers
    ]


def numbers_in(output: Path) -> list[int]:
    """Return the numbers of the conversations that were taken."""
    lines = (output / "valid.jsonl").read_bytes().splitlines()
    return [int(orjson.loads(line)["id"].removeprefix("row ")) for line in lines]


def after(*outputs: Path, **changes: Any) -> Increment:
    """Return the increment over the runs that left ``outputs``."""
    return Increment(seen_rows=tuple(output / "seen_rows.bin" for output in outputs), **changes)


def test_rows_of_earlier_runs_are_left_out_and_counted(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    validate_dataset(write_rows(*facts(1, 2)), tmp_path / "first")
    validate_dataset(write_rows(*facts(3, 4)), tmp_path / "second")

    report = validate_dataset(
        write_rows(*facts(1, 5, 3, 6, 2, 7)),
        tmp_path / "third",
        increment=after(tmp_path / "first", tmp_path / "second"),
    )

    assert numbers_in(tmp_path / "third") == [5, 6, 7]
    assert (report.rows_in, report.rows_valid, report.rows_seen, report.seen_files) == (6, 3, 3, 2)
    assert report.has_new_rows
    # What the report tells about valid rows is about those that go on.
    assert (report.roles, report.turns, report.extra_keys) == ({"user": 3, "assistant": 3}, {"2": 3}, {"id": 3})
    assert sum(report.row_bytes.values()) == report.shapes["messages"] == 3
    assert (tmp_path / "third/seen_rows.bin").stat().st_size == 3 * 16


@pytest.mark.parametrize("data_format", ["auto", "alpaca"])
def test_a_row_is_known_again_in_another_shape_and_under_another_id(
    tmp_path: Path, write_rows: Callable[..., Path], data_format: str
) -> None:
    validate_dataset(write_rows(*facts(1)), tmp_path / "first")
    rows = [{"id": f"row {n}", "instruction": f"Name of element {n}?", "output": f"Element {n}."} for n in (9, 1, 8)]

    report = validate_dataset(
        write_rows(*rows), tmp_path / "second", data_format=data_format, increment=after(tmp_path / "first")
    )

    assert numbers_in(tmp_path / "second") == [9, 8]
    assert (report.shapes, report.roles) == ({"alpaca": 2}, {"user": 2, "assistant": 2})


@pytest.mark.parametrize(
    ("data_format", "rows"),
    [
        ("documents", [{"document": f"Text {number}."} for number in range(3)]),
        ("processed", [{"input_ids": [1, number], "labels": [-100, number]} for number in range(3)]),
    ],
)
def test_documents_and_tokens_are_known_again_too(
    tmp_path: Path, write_rows: Callable[..., Path], data_format: str, rows: list[dict[str, Any]]
) -> None:
    validate_dataset(write_rows(*rows[:2]), tmp_path / "first", data_format=data_format)

    validate_dataset(
        write_rows(*rows), tmp_path / "second", data_format=data_format, increment=after(tmp_path / "first")
    )

    assert orjson.loads((tmp_path / "second/valid.jsonl").read_bytes()) == rows[2]


def test_nothing_new_is_no_error_and_says_why(
    tmp_path: Path, write_rows: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = write_rows(*facts(1, 2))
    validate_dataset(source, tmp_path / "first")

    report = validate_dataset(source, tmp_path / "second", increment=after(tmp_path / "first", unchanged_since="v0003"))

    assert (report.accepted, report.has_new_rows, report.rows_valid) == (True, False, 0)
    why = "The source is the same as that of v0003, byte for byte. Valid rows, all of which earlier runs had: 2."
    assert report.why_nothing_new == why
    assert f"valid.jsonl: there is nothing new to train on. {why}" in caplog.text
    assert (tmp_path / "second/valid.jsonl").read_bytes() == b""
    assert (tmp_path / "second/seen_rows.bin").read_bytes() == b""


def test_forced_rows_of_earlier_runs_are_counted_and_stay(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    validate_dataset(write_rows(*facts(1, 2)), tmp_path / "first")

    report = validate_dataset(
        write_rows(*facts(1, 3)), tmp_path / "second", increment=after(tmp_path / "first", force=True)
    )

    assert numbers_in(tmp_path / "second") == [1, 3]
    assert (report.rows_seen, report.force, report.has_new_rows) == (1, True, True)
    assert (tmp_path / "second/seen_rows.bin").stat().st_size == 2 * 16


def process(output: Path, model: str, **options: Any) -> tuple[set[int], set[int]]:
    """Process a validated folder in place; return the numbers of the trained and of the held-out conversations."""
    process_dataset(output, output, ProcessingConfig(**{"model": model, "max_seq_len": 200, **options}))
    numbers = numbers_in(output)
    lines = (pq.read_table(output / name)["row"].to_pylist() for name in ("train.parquet", "holdout.parquet"))
    trained, held_out = ({numbers[line - 1] for line in side} for side in lines)
    return trained, held_out


def after_processed(output: Path, **changes: Any) -> Increment:
    """Return the increment over a run that was processed."""
    return Increment(seen_rows=(output / "taken_rows.bin",), held_out_rows=(output / "held_out_rows.bin",), **changes)


@pytest.mark.parametrize("force", [False, True])
def test_a_row_that_an_earlier_run_held_out_is_never_trained_on(
    tmp_path: Path, write_rows: Callable[..., Path], tokenizer_folder: Callable[..., str], force: bool
) -> None:
    model = tokenizer_folder("CHATML")
    validate_dataset(write_rows(*facts(*range(20))), tmp_path / "first")
    trained, held_out = process(tmp_path / "first", model, holdout_fraction=0.5, seed=1)

    # Another seed and share would put them on the other side of the split.
    report = validate_dataset(
        write_rows(*facts(*range(30))), tmp_path / "second", increment=after_processed(tmp_path / "first", force=force)
    )
    trained_then, held_out_then = process(tmp_path / "second", model, holdout_fraction=0.1, seed=2)

    assert len(held_out) > 2
    new = set(range(20, 30))
    assert trained_then | held_out_then == (new | trained if force else new)
    assert (report.rows_seen, report.rows_seen_left_out) == (20, len(held_out) if force else 20)


def test_a_forced_run_over_held_out_rows_alone_has_nothing_new(
    tmp_path: Path, write_rows: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    validate_dataset(write_rows(*facts(1, 2)), tmp_path / "first")
    hashes = (tmp_path / "first/seen_rows.bin",)

    report = validate_dataset(
        write_rows(*facts(1, 2)),
        tmp_path / "second",
        increment=Increment(seen_rows=hashes, held_out_rows=hashes, force=True),
    )

    assert report.why_nothing_new == "Valid rows, all of which earlier runs held out: 2."
    assert "2 rows were seen in earlier runs: 2 left out, 0 kept" in caplog.text
    assert '<b>2</b><span class="soft small">2 left out: held out</span>' in page_of(report, tmp_path)


def test_a_row_that_was_too_long_is_new_to_a_run_with_more_room(
    tmp_path: Path, write_rows: Callable[..., Path], tokenizer_folder: Callable[..., str]
) -> None:
    model = tokenizer_folder("CHATML")
    rows = facts(*range(20))
    rows[7]["messages"][1]["content"] += " Again." * 100
    validate_dataset(write_rows(*rows), tmp_path / "first")
    process(tmp_path / "first", model)
    known = after_processed(tmp_path / "first")
    dropped = (tmp_path / "first/too_long_rows.bin",)

    validate_dataset(write_rows(*rows), tmp_path / "more", increment=known)
    report = validate_dataset(write_rows(*rows), tmp_path / "no more", increment=replace(known, too_long_rows=dropped))

    assert numbers_in(tmp_path / "more") == [7]
    assert (report.rows_seen, report.has_new_rows) == (20, False)


@pytest.mark.parametrize("first", [1, 2])
def test_hashes_are_those_of_the_split_that_was_written(
    tmp_path: Path, write_rows: Callable[..., Path], tokenizer_folder: Callable[..., str], first: int
) -> None:
    # Of so few rows the share alone would hold none out, so the file is split a second time.
    validate_dataset(write_rows(*facts(first, first + 2)), tmp_path / "out")
    (trained,), (held_out,) = process(tmp_path / "out", tokenizer_folder("CHATML"), holdout_fraction=0.01)

    again = after_processed(tmp_path / "out", force=True)
    validate_dataset(write_rows(*facts(trained, held_out)), tmp_path / "second", increment=again)

    assert numbers_in(tmp_path / "second") == [trained]


@pytest.mark.parametrize(
    ("data_format", "rows"),
    [
        ("alpaca", [{"instruction": f"Name {number}?", "output": "Fe."} for number in range(6)]),
        ("documents", [{"text": f"Element {number} is Fe."} for number in range(6)]),
        ("processed", [{"input_ids": [1, number], "labels": [-100, number]} for number in range(6)]),
    ],
)
def test_processed_rows_of_every_format_are_known_again(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    tokenizer_folder: Callable[..., str],
    data_format: str,
    rows: list[dict[str, Any]],
) -> None:
    options: dict[str, Any] = {"data_format": data_format, "document_column": "text"}
    validate_dataset(write_rows(*rows[:5]), tmp_path / "first", **options)
    config = ProcessingConfig(model=tokenizer_folder("CHATML"), max_seq_len=64, block_size=8, **options)
    process_dataset(tmp_path / "first", tmp_path / "first", config)

    report = validate_dataset(
        write_rows(*rows), tmp_path / "second", increment=after_processed(tmp_path / "first"), **options
    )

    assert (report.rows_seen, report.rows_valid) == (5, 1)


def test_a_timestamp_of_a_table_is_a_time(tmp_path: Path) -> None:
    times = [datetime(2026, 10, 31, 23, 59, 59, 999_999), datetime(2026, 11, 1), datetime(2026, 11, 2)]
    table = pa.table({"messages": [row["messages"] for row in facts(1, 2, 3)], "id": ["row 1", "row 2", "row 3"]})
    days = pa.array([time.date() for time in times])
    for name, column in (
        ("zone", pa.array(times, pa.timestamp("us", "UTC"))),
        ("plain", pa.array(times)),
        ("day", days),
    ):
        pq.write_table(table.append_column("at", column), tmp_path / f"{name}.parquet")
        download_dataset(str(tmp_path / f"{name}.parquet"), tmp_path / name)

        validate_dataset(tmp_path / name, tmp_path / name / "valid", increment=TIMED)

        assert numbers_in(tmp_path / name / "valid") == [2, 3]


def test_rows_from_before_the_time_are_left_out_whatever_they_hold(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    times = ["2026-10-31", "2026-11-01", "2026-11-01T00:30:00+01:00", 1_793_491_199, 1_793_491_200_000]
    rows = [{**row, "at": time} for row, time in zip(facts(*range(5)), times, strict=True)]

    report = validate_dataset(write_rows(*rows, {"at": "1999-01-01"}), tmp_path / "out", increment=TIMED)

    assert numbers_in(tmp_path / "out") == [1, 4]
    assert (report.rows_in, report.rows_valid, report.rows_too_old, report.rows_quarantined) == (6, 2, 4, 0)
    assert (report.since, report.time_column) == ("2026-11-01T00:00:00+00:00", "at")
    # It is read, so it is none of the keys that nothing reads.
    assert report.extra_keys == {"id": 2}


def test_a_row_without_a_readable_time_is_invalid_with_the_reason(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    times: list[Any] = ["2026-11-02", "soon", None, True]
    rows = [{**row, "at": time} for row, time in zip(facts(*range(4)), times, strict=True)]

    with pytest.raises(
        DataError, match=r"3 of 4 rows are invalid \(line 2, at: 'soon' is no time: .*\[time-unreadable\]"
    ):
        validate_dataset(write_rows(*rows), tmp_path / "out", increment=TIMED)

    quarantined = [orjson.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_bytes().splitlines()]
    assert [(item["line"], item["findings"][0]["code"]) for item in quarantined] == [
        (2, "time-unreadable"), (3, "time-missing"), (4, "time-unreadable"),
    ]  # fmt: skip


def test_the_share_of_invalid_rows_is_that_of_the_new_ones(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    rows = [*({**row, "at": "2020-01-01"} for row in facts(*range(8))), {**facts(8)[0], "at": "2026-11-02"}]

    with pytest.raises(DataError, match=r"1 of 2 rows are invalid .* that is 0\.5000, more than"):
        validate_dataset(
            write_rows(*rows, '{"at": "2026-11-02"}'),
            tmp_path / "out",
            on_invalid="drop",
            max_invalid_fraction=0.2,
            increment=TIMED,
        )


def test_a_file_of_old_rows_alone_has_nothing_new(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    report = validate_dataset(
        write_rows(*({**row, "at": "2020-01-01"} for row in facts(1, 2))), tmp_path / "out", increment=TIMED
    )

    assert not report.has_new_rows
    assert report.why_nothing_new == "Rows from before 2026-11-01T00:00:00+00:00: 2."


def test_invalid_rows_beside_known_ones_are_left_out_within_the_limit(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    validate_dataset(write_rows(*facts(1)), tmp_path / "first")
    options: dict[str, Any] = {"on_invalid": "drop", "increment": after(tmp_path / "first")}

    report = validate_dataset(write_rows(*facts(1), "{"), tmp_path / "second", max_invalid_fraction=0.5, **options)

    assert (report.accepted, report.has_new_rows, report.rows_quarantined) == (True, False, 1)
    with pytest.raises(DataError, match="no valid row is left"):
        validate_dataset(write_rows("{"), tmp_path / "third", max_invalid_fraction=1.0, **options)


def test_without_earlier_runs_all_rows_are_new(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    report = validate_dataset(write_rows(*facts(1, 1, 2)), tmp_path / "out")

    assert numbers_in(tmp_path / "out") == [1, 1, 2]
    assert (report.rows_seen, report.rows_too_old, report.since, report.why_nothing_new) == (0, 0, None, "")


def test_hashes_that_are_gone_end_the_step(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(MissingPathError, match=r"gone.*seen_rows\.bin: the hashes of an earlier run's rows"):
        validate_dataset(write_rows(*facts(1)), tmp_path / "out", increment=after(tmp_path / "gone"))


def test_hashes_are_not_overwritten_while_they_are_read(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    validate_dataset(write_rows(*facts(1)), tmp_path / "out")

    with pytest.raises(ConfigError, match=r"would overwrite the source .*seen_rows\.bin"):
        validate_dataset(write_rows(*facts(2)), tmp_path / "out", increment=after(tmp_path / "out"))


@pytest.mark.slow
def test_several_processes_leave_out_what_one_does(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_dataset(write_rows(*facts(*range(0, 300, 3))), tmp_path / "first")
    source = write_rows(*facts(*range(300)))
    validate_dataset(source, tmp_path / "one", increment=after(tmp_path / "first"))
    monkeypatch.setattr(validate, "CHUNK_BYTES", 2_000)
    monkeypatch.setattr(validate, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(validate, "count_processes", lambda: 2)

    validate_dataset(source, tmp_path / "two", increment=after(tmp_path / "first"))

    assert len(numbers_in(tmp_path / "one")) == 200
    for name in ("valid.jsonl", "validation.json", "seen_rows.bin"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def page_of(report: ValidationReport, tmp_path: Path) -> str:
    write_validation_page(report, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def test_the_page_says_how_many_rows_were_seen_before(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    validate_dataset(write_rows(*facts(1)), tmp_path / "first")
    times = ["2026-11-02", "2026-11-03", "2020-01-01"]
    rows = [{**row, "at": time} for row, time in zip(facts(1, 2, 3), times, strict=True)]

    report = validate_dataset(
        write_rows(*rows), tmp_path / "out", increment=after(tmp_path / "first", since=SINCE, time_column="at")
    )

    page = page_of(report, tmp_path)
    assert "1 row of valid.jsonl can be used, of 3." in page
    assert "Rows seen in earlier runs</span><b>1</b>" in page
    assert "Too old</span><b>1</b>" in page


def test_the_page_of_a_file_without_new_rows_says_so_first(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows(*facts(1))
    validate_dataset(source, tmp_path / "first")

    page = page_of(validate_dataset(source, tmp_path / "out", increment=after(tmp_path / "first")), tmp_path)

    assert "Nothing new</span>" in page
    assert "There is nothing new in valid.jsonl." in page
    assert "Valid rows, all of which earlier runs had: 1." in page
    assert "set train_force" in page
