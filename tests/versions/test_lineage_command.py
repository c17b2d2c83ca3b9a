from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from osft.errors import MissingPathError
from osft.versions.lineage_command import lineage
from osft.workspace import Workspace
from tests.versions.chains import five_domains, write_chain

app = typer.Typer()
app.command()(lineage)


def test_the_command_prints_the_chain_and_writes_the_page(tmp_path: Path) -> None:
    write_chain(Workspace(tmp_path), five_domains(versions=2))

    result = CliRunner().invoke(app, [str(tmp_path), "demo", "--html", str(tmp_path / "page.html")])

    assert result.exit_code == 0
    assert "average accuracy of v0002" in result.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_json_has_versions_matrix_and_figures(tmp_path: Path) -> None:
    write_chain(Workspace(tmp_path), five_domains(versions=2))

    result = CliRunner().invoke(app, [str(tmp_path), "demo", "--json", "--html", str(tmp_path / "page.html")])

    content = orjson.loads(result.stdout)
    assert [one["version"] for one in content["versions"]] == ["v0001", "v0002"]
    assert content["matrix"]["scores"][0] == [1.0, 0.972, 0.0, None]
    assert content["figures"]["accuracy_tasks"] == 4


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "nowhere"), "demo"])

    assert isinstance(result.exception, MissingPathError)
    with pytest.raises(MissingPathError, match="nowhere: the workspace does not exist"):
        raise result.exception
