from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from osft.comparison.commands import compare
from osft.errors import ConfigError
from osft.workspace import Workspace
from tests.comparison.runs import write_run

app = typer.Typer()
app.command()(compare)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, name in enumerate(("first", "second", "third")):
        write_run(Workspace(tmp_path.resolve()), name, started_seconds=1.8e9 + place)
    return tmp_path


def test_the_named_runs_are_compared_and_the_page_is_written(folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder), "third", "first", "--html", str(folder / "page.html")])

    assert result.exit_code == 0
    assert "retention.country_capital" in result.stdout
    assert result.stdout.split()[:2] == ["third", "first"]
    assert (folder / "page.html").is_file()


def test_the_newest_runs_are_compared_as_json(folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder), "--last", "2", "--json", "--html", str(folder / "page.html")])

    runs = orjson.loads(result.stdout)
    assert [run["run_id"] for run in runs] == ["second", "third"]
    assert runs[0]["metrics"]["forgetting"] == 0.03
    assert "loss" not in runs[0]


def test_too_few_runs_are_refused(folder: Path) -> None:
    result = CliRunner().invoke(app, [str(folder), "first"])

    assert isinstance(result.exception, ConfigError)
    assert "give two runs, or --last 2" in str(result.exception)
