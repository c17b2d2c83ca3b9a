"""Schedules: one of a name is in force, and it is the one that was asked for last."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline_server.client import PipelineServer
from pipeline_server.errors import PipelineServerError
from pipeline_server.runs import ensure_experiment
from pipeline_server.schedules import Schedule, ScheduleChange, put_schedule
from pipeline_server.upload import upload_version
from tests.pipeline_server.api import Api
from tests.pipeline_server.server import Fault, KfpServer

Connect = Callable[[KfpServer], PipelineServer]


@dataclass(kw_only=True)
class BusyApi(Api):
    """A server that is asked for something else just before it answers a request for recurring runs."""

    acts: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    """By method what happens before the next requests."""

    def answer(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Let it happen, and answer."""
        if path.endswith("/recurringruns") and (acts := self.acts.get(method)):
            acts.pop(0)()
        return super().answer(method, path, query, body)


@pytest.fixture
def api() -> BusyApi:
    return BusyApi()


@pytest.fixture
def kfp(make_kfp: Callable[..., KfpServer], api: BusyApi) -> KfpServer:
    return make_kfp(api=api)


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
    assert change.is_new
    assert kept["recurring_run_id"] == change.recurring_run_id
    assert kept["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 0"}}
    assert (kept["max_concurrency"], kept["no_catchup"]) == ("1", True)
    assert kept["runtime_config"]["parameters"] == schedule.arguments


def test_the_same_schedule_is_not_made_twice(kfp: KfpServer, server: PipelineServer, schedule: Schedule) -> None:
    first = put_schedule(server, schedule)

    second = put_schedule(server, schedule)

    assert (second.is_new, second.recurring_run_id, second.disabled) == (False, first.recurring_run_id, ())
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

    assert second.is_new
    assert second.disabled == (first.recurring_run_id,)
    assert [one["recurring_run_id"] for one in kfp.api.enabled()] == [second.recurring_run_id]
    # The cluster would delete the runs of a schedule that is deleted, one that is training included.
    assert len(kfp.api.things["recurringruns"]) == 2
    assert kfp.asked("DELETE", "") == 0
    # At no time is none in force.
    path = "/apis/v2beta1/recurringruns"
    assert kfp.requests[-3:] == [f"POST {path}", f"GET {path}", f"POST {path}/{first.recurring_run_id}:disable"]


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


def test_what_was_before_is_made_anew_when_it_is_asked_for_again(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    put_schedule(server, schedule)
    second = put_schedule(server, replace(schedule, cron="0 0 3 * * 0"))

    third = put_schedule(server, schedule)

    assert third.is_new
    assert third.disabled == (second.recurring_run_id,)
    assert [one["recurring_run_id"] for one in kfp.api.enabled()] == [third.recurring_run_id]


def test_what_others_of_the_project_call_the_same_is_left_alone(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule, pipeline_file: Path
) -> None:
    theirs = upload_version(server, pipeline_file, "another-pipeline", "")
    put_schedule(server, replace(schedule, version=theirs))
    put_schedule(server, replace(schedule, experiment_id=ensure_experiment(server, "another-experiment")))

    first = put_schedule(server, schedule)
    second = put_schedule(server, replace(schedule, cron="0 0 3 * * 0"))

    assert (first.disabled, second.disabled) == ((), (first.recurring_run_id,))
    assert len(kfp.api.enabled()) == 3


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

    assert (change.is_new, change.disabled) == (False, (first.recurring_run_id,))
    assert len(kfp.api.enabled()) == 1


def test_a_schedule_that_may_have_been_made_is_not_made_again(
    kfp: KfpServer, server: PipelineServer, schedule: Schedule
) -> None:
    kfp.faults.append(Fault(code=504, path="/recurringruns", method="POST", is_done=True))

    with pytest.raises(PipelineServerError, match="It may be there nonetheless"):
        put_schedule(server, schedule)

    assert not put_schedule(server, schedule).is_new
    assert len(kfp.api.enabled()) == 1


def test_of_two_who_schedule_at_the_same_time_the_later_is_in_force(
    api: BusyApi, server: PipelineServer, schedule: Schedule
) -> None:
    theirs: list[ScheduleChange] = []
    another = replace(schedule, cron="0 0 3 * * 0")
    api.acts["POST"] = [lambda: theirs.append(put_schedule(server, another))]

    change = put_schedule(server, schedule)

    assert change.disabled == (theirs[0].recurring_run_id,)
    assert [one["recurring_run_id"] for one in api.enabled()] == [change.recurring_run_id]


def test_who_schedules_at_the_same_time_but_earlier_is_told_so(
    api: BusyApi, server: PipelineServer, schedule: Schedule
) -> None:
    theirs: list[ScheduleChange] = []
    another = replace(schedule, cron="0 0 3 * * 0")
    # Made before the list is read a second time, by somebody who has not read it yet.
    api.acts["POST"] = [lambda: api.acts.update(GET=[lambda: theirs.append(put_schedule(server, another))])]

    with pytest.raises(PipelineServerError, match=r"another was put into force at the same time.*Try again to replace"):
        put_schedule(server, schedule)

    assert [one["recurring_run_id"] for one in api.enabled()] == [theirs[0].recurring_run_id]


@pytest.mark.parametrize("cron", ["0 0 2 * * 0", "0 0 3 * * 0"])
def test_of_two_who_schedule_in_the_same_second_both_choose_the_same(
    api: BusyApi, server: PipelineServer, schedule: Schedule, cron: str
) -> None:
    api.clock = lambda: datetime(2026, 11, 22, 14, 50, tzinfo=UTC)
    api.make_id = map(str, range(100, 200)).__next__
    # Both have read the list, and neither has made anything.
    api.acts["POST"] = [Barrier(2, timeout=10).wait] * 2

    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(put_schedule, server, one) for one in (schedule, replace(schedule, cron=cron))]
    changes = [call.result() for call in calls if not call.exception()]

    (kept,) = api.enabled()
    assert kept["recurring_run_id"] == "101"
    assert "101" in [change.recurring_run_id for change in changes]
