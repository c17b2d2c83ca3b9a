"""What a person wants of a pipeline: uploaded, run once, run on a schedule; or only to see what would be sent."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from kfp.dsl.base_component import BaseComponent

from osft.errors import ConfigError
from pipeline_server.client import PipelineServer
from pipeline_server.submission import Submission, open_server, submit
from tests.pipeline_server.server import TOKEN, KfpServer

Connect = Callable[[KfpServer], PipelineServer]
Submit = Callable[..., Submission]
NOW = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)


@pytest.fixture
def make(pipeline: BaseComponent, pipeline_file: Path) -> Submit:
    def make_submission(**of_test: Any) -> Submission:
        defaults: dict[str, Any] = {"arguments": {"data_uri": "pvc://new.jsonl"}, "experiment": "continual-learning"}
        return Submission(pipeline=pipeline, file=pipeline_file, **{**defaults, **of_test})

    return make_submission


def test_an_upload_needs_no_parameters_and_prints_its_link(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    first, second = (list(submit(connect(kfp), make(arguments={}), NOW)) for _ in range(2))

    (version,) = kfp.api.things["versions"]
    link = f"{kfp.host}/#/pipelines/details/{version['pipeline_id']}/version/{version['pipeline_version_id']}"
    assert first == [f"version {version['name']} of osft-tiny: uploaded: {link}"]
    assert second == [f"version {version['name']} of osft-tiny: there already, not uploaded again: {link}"]
    assert kfp.api.things["experiments"] == []


def test_a_run_and_a_schedule_have_names_that_say_what_they_are(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    lines = list(submit(connect(kfp), make(run=True, cron="0 2 * * 0"), NOW))

    (run,), (schedule,) = kfp.api.things["runs"], kfp.api.things["recurringruns"]
    assert run["display_name"] == "Qwen2.5-1.5B-Instruct on new.jsonl rho 0.25 2026-11-22 14:50"
    assert (schedule["display_name"], schedule["description"]) == (
        "continual-model osft-tiny", "Qwen2.5-1.5B-Instruct on new.jsonl rho 0.25"
    )  # fmt: skip
    assert lines[1:] == [
        f"run '{run['display_name']}': started: {kfp.host}/#/runs/details/{run['run_id']}",
        "schedule 'continual-model osft-tiny' (0 0 2 * * 0): created: "
        f"{kfp.host}/#/recurringrun/details/{schedule['recurring_run_id']}",
    ]


def test_a_schedule_keeps_its_name_when_its_parameters_change(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    list(submit(connect(kfp), make(cron="0 2 * * 0"), NOW))
    arguments = {"data_uri": "pvc://new.jsonl", "train_unfreeze_rank_ratio": 0.5}

    lines = list(submit(connect(kfp), make(cron="0 2 * * 0", arguments=arguments), NOW))

    first, _ = kfp.api.things["recurringruns"]
    assert lines[2] == (
        "schedule 'continual-model osft-tiny': the one before is disabled, its runs go on: "
        f"{kfp.host}/#/recurringrun/details/{first['recurring_run_id']}"
    )
    assert len(kfp.api.enabled()) == 1


def test_the_runs_of_two_models_schedules_have_different_names(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    for model in ("chemist", "historian"):
        arguments = {"data_uri": "pvc://new.jsonl", "promote_model_name": model}
        list(submit(connect(kfp), make(cron="0 2 * * 0", arguments=arguments), NOW))

    names = [one["display_name"] for one in kfp.api.things["recurringruns"]]
    # What KFP's server makes of a schedule's name, before it adds a random part and a number.
    assert [re.sub("[^a-z0-9-]+", "", name.lower())[:25] for name in names] == [
        "chemistosft-tiny",
        "historianosft-tiny",
    ]


def test_the_same_schedule_again_says_that_nothing_changed(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    list(submit(connect(kfp), make(cron="0 2 * * 0"), NOW))

    lines = list(submit(connect(kfp), make(cron="0 0 2 * * 0"), NOW))

    assert "there already, and unchanged" in lines[1]


def test_a_name_of_ones_own_is_taken(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    list(submit(connect(kfp), make(run=True, cron="@weekly", name="mine"), NOW))

    assert [kfp.api.things[kind][0]["display_name"] for kind in ("runs", "recurringruns")] == ["mine", "mine"]


@pytest.mark.parametrize("what", [{"run": True}, {"cron": "0 2 * * 0"}])
def test_a_run_without_data_is_refused_before_anything_is_sent(make: Submit, what: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the parameter data_uri has no value. Give --set data_uri="):
        make(arguments={}, **what)


def test_a_bad_cron_line_is_refused_before_anything_is_sent(make: Submit) -> None:
    with pytest.raises(ConfigError, match="'61' is no minute"):
        make(cron="61 2 * * 0")


def test_a_dry_run_prints_what_would_be_sent_and_no_secret(make: Submit, pipeline_file: Path) -> None:
    requests: list[str] = []
    environment = {"KF_PIPELINES_ENDPOINT": "https://x.example", "KF_PIPELINES_TOKEN": TOKEN}

    server = open_server(environment, requests.append)
    lines = list(submit(server, make(run=True, cron="0 2 * * 0"), NOW))

    sent = [line for line in requests if line.startswith("POST")]
    base = "POST https://x.example/apis/v2beta1"
    assert [line.partition(" {")[0].partition("?")[0] for line in sent] == [
        f"{base}/{path}" for path in ("pipelines", "pipelines/upload_version", "experiments", "runs", "recurringruns")
    ]
    assert sent[1].endswith(f" osft-tiny.yaml ({pipeline_file.stat().st_size} bytes)")
    recurring_run = orjson.loads(sent[4].partition(" ")[2].partition(" ")[2])
    assert recurring_run["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 0"}}
    assert recurring_run["runtime_config"]["parameters"] == {"data_uri": "pvc://new.jsonl"}
    assert not [line for line in [*requests, *lines] if TOKEN in line or "\n" in line]


def test_nothing_secret_of_a_link_is_printed_or_in_a_name(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    link = "https://me:secret@bucket.example/new.jsonl?X-Signature=secret"
    submission, requests = make(run=True, cron="0 2 * * 0", arguments={"data_uri": link}), list[str]()

    dry = list(submit(open_server({"KF_PIPELINES_ENDPOINT": kfp.host}, requests.append), submission, NOW))
    lines = list(submit(connect(kfp), submission, NOW))

    assert not [line for line in [*requests, *dry, *lines] if "secret" in line]
    assert sum('"data_uri":"https://bucket.example/new.jsonl"' in line for line in requests) == 2
    for kind in ("runs", "recurringruns"):
        (thing,) = kfp.api.things[kind]
        assert "secret" not in f"{thing['display_name']} {thing.get('description')}"
        # The run itself needs the whole of it.
        assert thing["runtime_config"]["parameters"] == {"data_uri": link}


def test_a_dry_run_sends_what_a_real_one_does(kfp: KfpServer, connect: Connect, make: Submit) -> None:
    requests: list[str] = []

    list(submit(open_server({"KF_PIPELINES_ENDPOINT": kfp.host}, requests.append), make(run=True, cron="@daily"), NOW))
    assert kfp.requests == []
    list(submit(connect(kfp), make(run=True, cron="@daily"), NOW))

    written = [line.partition("?")[0].partition(" {")[0].replace(kfp.host, "") for line in requests]
    pipeline_id = kfp.api.things["pipelines"][0]["pipeline_id"]
    assert [line.replace("PIPELINE_ID", pipeline_id) for line in written] == kfp.requests
