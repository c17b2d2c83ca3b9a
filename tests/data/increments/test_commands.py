"""``osft download`` and ``osft validate`` of a data set that grows."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from osft.cli import app
from osft.errors import ConfigError


def write_facts(path: Path, *days: int) -> None:
    """Write one conversation for each day of November."""
    lines = []
    for day in days:
        turns = [{"role": "user", "content": f"Day {day}?"}, {"role": "assistant", "content": f"The {day}th."}]
        lines.append(json.dumps({"messages": turns, "timestamp": f"2026-11-{day:02d}"}))
    path.write_text("\n".join(lines))


def run(*arguments: object) -> str:
    """Run a command and return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_dated_file_is_downloaded(tmp_path: Path) -> None:
    write_facts(tmp_path / "2026-11-21.jsonl", 1)
    source, output = tmp_path / "{date:%Y-%m-%d}.jsonl", tmp_path / "raw"

    printed = run("download", source, "--output", output, "--date", "P1D/2026-11-22")

    assert printed.startswith("1 rows")
    assert json.loads((output / "source.json").read_text())["uri"].endswith("/2026-11-21.jsonl")


def test_rows_of_earlier_runs_and_old_ones_are_left_out(tmp_path: Path) -> None:
    write_facts(tmp_path / "first.jsonl", 10)
    write_facts(tmp_path / "second.jsonl", 1, 2, 10, 11, 12)
    run("validate", tmp_path / "first.jsonl", "--output", tmp_path / "first")
    seen_rows = tmp_path / "first/seen_rows.bin"

    printed = run(
        "validate", tmp_path / "second.jsonl", "--output", tmp_path / "second", "--since", "2026-11-03",
        "--seen-rows", seen_rows,
    )  # fmt: skip

    assert printed.startswith("5 rows: 2 too old, 1 seen before, 2 valid, 0 quarantined")


def test_a_time_that_is_none_is_named_as_the_option(tmp_path: Path) -> None:
    write_facts(tmp_path / "rows.jsonl", 1)

    with pytest.raises(ConfigError, match="--since is 'soon'; allowed is a date or time"):
        run("validate", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--since", "soon")
