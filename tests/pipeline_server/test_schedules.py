"""Schedules: one of a name is in force, and it is the one that was asked for last."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline_server.client import PipelineServer
from pipeline_server.errors import PipelineServerError
from pipeline_server.runs import ensure_experiment
from pipeline_server.schedules import Schedule, put_schedule
from pipeline_server.upload import upload_version
from tests.pipeline_server.server import Fault, KfpServer

Connect = Callable[[KfpServer], PipelineServer]


@pytest.fixture
def server(kfp: KfpServer, connect: Connect) -> PipelineServer:
    return connect(kfp)


@pytest.fixture
def schedule(server: PipelineServer, pipeline_file: Path) -> Schedule:
    return Schedule(
        name="osft-tiny chemist",
        description="chemist on new.jsonl rho 0.25",
        cron="0 0 2 * * 0",
        experiment_id=ensure_experiment(server, "continual-learning"),
        version=upload_version(server, pipeline_file, "osft-tiny", ""),
        arguments={"data_uri": "pvc://new.jsonl", "train_num_epochs": 3, "train_unfreeze_rank_ratio": 0.5},
    )


def test_a_schedule_runs_one_at_a_time_and_does_not_catch_up(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    change = put_schedule(server, schedule)

    (kept,) = kfp.api.enabled()
    assert change.change == "created"
    assert kept["recurring_run_id"] == change.recurring_run_id
    assert kept["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 0"}}
    assert (kept["max_concurrency"], kept["no_catchup"]) == ("1", True)
    assert kept["runtime_config"]["parameters"] == schedule.arguments


def test_the_same_schedule_is_not_made_twice(kfp: KfpServer, server: PipelineServer, schedule: Schedule) -> None:
    first = put_schedule(server, schedule)

    second = put_schedule(server, schedule)

    assert (second.change, second.recurring_run_id, second.disabled) == ("unchanged", first.recurring_run_id, ())
    assert len(kfp.api.things["recurringruns"]) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"cron": "0 0 3 * * 0"},
        {"arguments": {"data_uri": "pvc://new.jsonl", "train_num_epochs": 4, "train_unfreeze_rank_ratio": 0.5}},
        {"arguments": {"data_uri": "pvc://new.jsonl"}},
    ],
)
def test_a_changed_schedule_replaces_the_one_before_whose_runs_go_on(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule, changed: dict[str, Any]
) -> None:
    first = put_schedule(server, schedule)

    second = put_schedule(server, replace(schedule, **changed))

    assert second.change == "created"
    assert second.disabled == (first.recurring_run_id,)
    assert [one["recurring_run_id"] for one in kfp.api.enabled()] == [second.recurring_run_id]
    # The cluster would delete the runs of a schedule that is deleted, one that is training included.
    assert len(kfp.api.things["recurringruns"]) == 2
    assert kfp.asked("DELETE", "") == 0
    # At no time is none in force.
    assert kfp.requests[-2:] == [
        "POST /apis/v2beta1/recurringruns", f"POST /apis/v2beta1/recurringruns/{first.recurring_run_id}:disable"
    ]  # fmt: skip


def test_a_new_version_of_the_pipeline_replaces_the_schedule(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule, pipeline_file: Path
) -> None:
    put_schedule(server, schedule)
    pipeline_file.write_text("# changed\n" + pipeline_file.read_text())
    version = upload_version(server, pipeline_file, "osft-tiny", "")

    change = put_schedule(server, replace(schedule, version=version))

    (kept,) = kfp.api.enabled()
    assert len(change.disabled) == 1
    assert kept["pipeline_version_reference"]["pipeline_version_id"] == version.version_id


def test_what_was_before_is_enabled_again_when_it_is_asked_for_again(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    first = put_schedule(server, schedule)
    second = put_schedule(server, replace(schedule, cron="0 0 3 * * 0"))

    third = put_schedule(server, schedule)

    assert (third.change, third.recurring_run_id) == ("enabled", first.recurring_run_id)
    assert third.disabled == (second.recurring_run_id,)
    assert len(kfp.api.enabled()) == 1


def test_schedules_of_other_names_are_left_alone(kfp: KfpServer, server: PipelineServer, schedule: Schedule) -> None:
    put_schedule(server, schedule)

    change = put_schedule(server, replace(schedule, name="another", cron="0 0 3 * * 0"))

    assert change.disabled == ()
    assert len(kfp.api.enabled()) == 2


def test_the_schedule_in_force_is_found_behind_many_that_were_replaced(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    first = put_schedule(server, schedule)
    (kept,) = kfp.api.things["recurringruns"]
    kfp.api.things["recurringruns"] += [
        {**kept, "recurring_run_id": str(number), "status": "DISABLED", "no_catchup": False} for number in range(250)
    ]

    assert put_schedule(server, schedule).recurring_run_id == first.recurring_run_id


def test_a_schedule_that_was_left_when_the_network_failed_is_disabled_the_next_time(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    first = put_schedule(server, schedule)
    changed = replace(schedule, cron="0 0 3 * * 0")
    kfp.faults.append(Fault(code=503, path=":disable", times=3))
    with pytest.raises(PipelineServerError, match="503 a fault"):
        put_schedule(server, changed)

    change = put_schedule(server, changed)

    assert (change.change, change.disabled) == ("unchanged", (first.recurring_run_id,))
    assert len(kfp.api.enabled()) == 1


def test_a_schedule_that_may_have_been_made_is_not_made_again(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    kfp.faults.append(Fault(code=504, path="/recurringruns", method="POST", is_done=True))

    with pytest.raises(PipelineServerError, match="It may be there nonetheless"):
        put_schedule(server, schedule)

    assert put_schedule(server, schedule).change == "unchanged"
    assert len(kfp.api.enabled()) == 1
