"""Runs: named for what they are, in an experiment, and never started twice."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline_server.client import PipelineServer
from pipeline_server.errors import PipelineServerError
from pipeline_server.runs import ensure_experiment, name_run, start_run
from pipeline_server.upload import PipelineVersion, upload_version
from tests.pipeline_server.api import Api
from tests.pipeline_server.server import Fault, KfpServer

Connect = Callable[[KfpServer], PipelineServer]
NOW = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)


@pytest.fixture
def server(kfp: KfpServer, connect: Connect) -> PipelineServer:
    return connect(kfp)


@pytest.fixture
def version(server: PipelineServer, pipeline_file: Path) -> PipelineVersion:
    return upload_version(server, pipeline_file, "osft-tiny", "")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            {
                "model_base": "Qwen/Qwen2.5-1.5B-Instruct",
                "data_uri": "pvc://new/elements.jsonl",
                "train_unfreeze_rank_ratio": 0.25,
            },
            "Qwen2.5-1.5B-Instruct on elements.jsonl rho 0.25 2026-11-22 14:50",
        ),
        (
            {"model_base": "promoted://chemist", "data_uri": "hf://me/facts@main", "train_unfreeze_rank_ratio": 1.0},
            "chemist on facts@main rho 1 2026-11-22 14:50",
        ),
        ({"data_uri": f"s3://bucket/{'x' * 200}"}, f"on {'x' * 47}… 2026-11-22 14:50"),
        (
            {"model_base": "chemist", "data_uri": "https://me:secret@bucket.example/new.jsonl?X-Signature=secret/x"},
            "chemist on new.jsonl 2026-11-22 14:50",
        ),
        ({"data_uri": "https://bucket.example?X-Signature=secret"}, "on bucket.example 2026-11-22 14:50"),
        ({"model_base": "chemist", "sweep_ratios": [0.1, 0.5]}, "chemist rho 0.1, 0.5 2026-11-22 14:50"),
        ({"sweep_ratios": [0.125] * 9}, f"rho {'0.125, ' * 6}0.125… 2026-11-22 14:50"),
        ({}, "2026-11-22 14:50"),
    ],
)
def test_a_run_is_named_by_model_data_rho_and_date(arguments: dict[str, object], name: str) -> None:
    assert name_run(arguments, NOW) == name


def test_a_run_has_its_version_its_experiment_and_only_the_parameters_that_were_set(
    kfp: KfpServer, server: PipelineServer, version: PipelineVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment_id = ensure_experiment(server, "continual-learning")

    run_id = start_run(server, version, experiment_id, "a run", {"data_uri": "pvc://x", "train_num_epochs": 2})

    (run,) = kfp.api.things["runs"]
    assert (run["run_id"], run["display_name"], run["experiment_id"]) == (run_id, "a run", experiment_id)
    assert run["pipeline_version_reference"] == {
        "pipeline_id": version.pipeline_id, "pipeline_version_id": version.version_id
    }  # fmt: skip
    assert run["runtime_config"]["parameters"] == {"data_uri": "pvc://x", "train_num_epochs": 2}
    # kfp prints links of a UI that RHOAI does not have.
    assert capsys.readouterr().out == ""


def test_an_experiment_is_created_once(kfp: KfpServer, server: PipelineServer) -> None:
    first = ensure_experiment(server, "continual-learning")

    assert ensure_experiment(server, "continual-learning") == first
    assert len(kfp.api.things["experiments"]) == 1


def test_an_experiment_that_somebody_else_creates_at_the_same_time_is_used(
    kfp: KfpServer, server: PipelineServer
) -> None:
    kfp.faults.append(Fault(code=503, path="/experiments", method="POST", is_done=True))

    experiment_id = ensure_experiment(server, "continual-learning")

    assert [one["experiment_id"] for one in kfp.api.things["experiments"]] == [experiment_id]


def test_the_project_is_the_namespace_of_a_server_of_several_projects(
    make_kfp: Callable[..., KfpServer], connect: Connect, pipeline_file: Path
) -> None:
    kfp = make_kfp(api=Api(is_multi_user=True))

    server = connect(kfp)
    upload_version(server, pipeline_file, "osft-tiny", "")
    ensure_experiment(server, "continual-learning")

    assert kfp.api.things["experiments"][0]["namespace"] == "my-project"
    assert kfp.api.things["pipelines"][0]["namespace"] == "my-project"


@pytest.mark.parametrize("code", [500, 503, 0])
def test_a_run_that_may_have_been_started_is_not_started_again(
    kfp: KfpServer, server: PipelineServer, version: PipelineVersion, code: int
) -> None:
    experiment_id = ensure_experiment(server, "continual-learning")
    kfp.faults.append(Fault(code=code, path="/runs", method="POST", is_done=True))

    with pytest.raises(PipelineServerError, match="It may be there nonetheless: look before you try again"):
        start_run(server, version, experiment_id, "a run", {"data_uri": "pvc://x"})

    assert len(kfp.api.things["runs"]) == 1
    assert kfp.asked("POST", "/runs") == 1


def test_a_run_that_a_busy_server_turned_away_is_tried_again(
    kfp: KfpServer, server: PipelineServer, version: PipelineVersion
) -> None:
    experiment_id = ensure_experiment(server, "continual-learning")
    kfp.faults.append(Fault(code=429, path="/runs", method="POST", headers={"Retry-After": "0"}))

    start_run(server, version, experiment_id, "a run", {"data_uri": "pvc://x"})

    assert len(kfp.api.things["runs"]) == 1


def test_a_run_in_an_experiment_that_was_deleted_says_so(server: PipelineServer, version: PipelineVersion) -> None:
    with pytest.raises(PipelineServerError, match=r"POST .*/runs: 404 .*Experiment not found\. It was deleted"):
        start_run(server, version, "gone", "a run", {"data_uri": "pvc://x"})
