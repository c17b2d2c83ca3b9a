"""``compile.py`` as a command: from the pipeline's code to a version, a run and a schedule on a server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from compile import main
from tests.pipeline_server.api import Api
from tests.pipeline_server.server import TOKEN, KfpServer, make_tls

ROOT = Path(__file__).parent.parent
NAME = "osft-continual-learning"


@pytest.fixture
def kfp(tmp_path: Path) -> Iterator[KfpServer]:
    """A server with TLS, whose authority is in ``tls/ca.crt`` of the test's folder."""
    server = KfpServer(Api(), token=TOKEN, tls=make_tls(tmp_path / "tls")[0])
    yield server
    server.stop()


def call(tmp_path: Path, *arguments: str) -> Result:
    """Call the command, with no login but what a test writes to the file ``kubeconfig``."""
    app = typer.Typer()
    app.command()(main)
    environment = dict.fromkeys([name for name in os.environ if name.startswith("KF_PIPELINES_")])
    return CliRunner().invoke(
        app,
        ["--output", str(tmp_path / "dist"), *arguments],
        env={**environment, "KUBECONFIG": str(tmp_path / "kubeconfig")},
    )


def test_the_command_uploads_runs_and_schedules_over_tls(kfp: KfpServer, tmp_path: Path) -> None:
    # What another client of this user left behind: not ours to read.
    context = tmp_path / ".config" / "kfp" / "context.json"
    context.parent.mkdir(parents=True)
    context.write_text("[another client's]")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "KF_PIPELINES_ENDPOINT": kfp.host,
        "KF_PIPELINES_TOKEN": TOKEN,
        "KF_PIPELINES_SSL_SA_CERTS": str(tmp_path / "tls" / "ca.crt"),
    }

    finished = subprocess.run(
        [
            sys.executable, str(ROOT / "compile.py"), "--output", str(tmp_path / "dist"), "--run",
            "--schedule", "0 2 * * 0", "--set", "data_uri=pvc://new.jsonl", "--set", "train_unfreeze_rank_ratio=0.5",
        ],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip

    assert finished.stderr == ""
    (version,), (run,), (schedule,) = (kfp.api.things[kind] for kind in ("versions", "runs", "recurringruns"))
    assert kfp.api.files[version["pipeline_version_id"]] == (tmp_path / "dist" / f"{NAME}.yaml").read_bytes()
    expected = {"data_uri": "pvc://new.jsonl", "train_unfreeze_rank_ratio": 0.5}
    assert run["runtime_config"]["parameters"] == schedule["runtime_config"]["parameters"] == expected
    wrote, uploaded, started, scheduled = finished.stdout.splitlines()[-4:]
    assert wrote.startswith("wrote ")
    assert uploaded.startswith(f"version {version['display_name']} of {NAME}: uploaded: {kfp.host}/")
    assert started.endswith(f"/runs/details/{run['run_id']}")
    assert scheduled.endswith(f"/recurringrun/details/{schedule['recurring_run_id']}")
    assert TOKEN not in finished.stdout
    assert context.read_text() == "[another client's]"


def test_a_dry_run_prints_every_request_and_needs_no_cluster(tmp_path: Path) -> None:
    finished = call(tmp_path, "--dry-run", "--run", "--schedule", "0 2 * * 0", "--set", "data_uri=pvc://new.jsonl")

    assert (finished.exit_code, finished.stderr) == (0, "")
    requests = [line for line in finished.stdout.splitlines() if not line.startswith("wrote ")]
    paths = [line.split(" ")[1].partition("/apis/v2beta1/")[2] for line in requests if line.startswith("POST")]
    assert [path.partition("?")[0] for path in paths] == [
        "pipelines", "pipelines/upload_version", "experiments", "runs", "recurringruns"
    ]  # fmt: skip
    assert all(line.startswith(("GET https://", "POST https://")) for line in requests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run"], "compile.py: the parameter data_uri has no value. Give --set data_uri=..."),
        (["--schedule", "", "--set", "data_uri=x"], "compile.py: --schedule '' has 0 fields. Give five"),
        (["--upload", "--set", "data_uri=x"], "compile.py: --set is a parameter of runs. Give --run or --schedule"),
        (["--upload", "--pipeline", "x"], f"compile.py: --pipeline 'x' is not one of {NAME}"),
        (["--upload"], "compile.py: no way to a pipeline server. Give its address in KF_PIPELINES_ENDPOINT, such as "),
    ],
)
def test_what_is_missing_is_one_line_and_exit_code_1(tmp_path: Path, arguments: list[str], message: str) -> None:
    finished = call(tmp_path, *arguments)

    assert finished.exit_code == 1
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1


def test_a_broken_kubeconfig_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("clusters: [")

    finished = call(tmp_path, "--upload")

    assert finished.exit_code == 1
    assert finished.stderr.startswith(f"compile.py: the login to the cluster cannot be used: {tmp_path}/kubeconfig is ")
    assert finished.stderr.count("\n") == 1
