"""Schedules, which the API calls recurring runs: one of a name is in force, with the content that was asked for last.

The API can neither change a recurring run nor keep its name unique. So one with new content is created and then the one
that it replaces disabled, in this order: between the two both are in force, which at worst starts a run twice, and the
promotion lets only one of two win; the other order could leave none. What is replaced is not deleted, since the cluster
would delete its runs with it, one that is training included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_server.client import PipelineServer, is_named, list_all
from pipeline_server.upload import PipelineVersion

ENABLED = "ENABLED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """What is to run, and when."""

    name: str
    description: str
    cron: str
    """Six fields, the seconds first."""

    experiment_id: str
    version: PipelineVersion
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleChange:
    """What became of a schedule."""

    recurring_run_id: str
    change: str
    """``created``, ``enabled``, or ``unchanged``."""

    disabled: tuple[str, ...]
    """The recurring runs that it replaced."""


def put_schedule(server: PipelineServer, schedule: Schedule) -> ScheduleChange:
    """Put a schedule into force in place of the one of its name; the same again changes nothing.

    One run at a time, and none for the times that were missed.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached.
    """
    there = list(
        list_all(
            server.list_recurring_runs,
            "recurring_runs",
            filter=is_named(schedule.name),
            namespace=server.namespace,
            sort_by="created_at desc",
        )
    )
    same = sorted((one for one in there if _has_content(one, schedule)), key=lambda one: one.status != ENABLED)
    if not same:
        change, recurring_run_id = "created", _create(server, schedule)
    elif same[0].status == ENABLED:
        change, recurring_run_id = "unchanged", same[0].recurring_run_id
    else:
        change, recurring_run_id = "enabled", same[0].recurring_run_id
        server.enable_recurring_run(recurring_run_id)
    replaced = [
        one.recurring_run_id for one in there if one.status == ENABLED and one.recurring_run_id != recurring_run_id
    ]
    for one in replaced:
        server.disable_recurring_run(one)
    return ScheduleChange(recurring_run_id=recurring_run_id, change=change, disabled=tuple(replaced))


def _create(server: PipelineServer, schedule: Schedule) -> str:
    created = server.create_recurring_run(
        schedule.experiment_id,
        schedule.name,
        description=schedule.description,
        cron_expression=schedule.cron,
        max_concurrency=1,
        no_catchup=True,
        params=dict(schedule.arguments),
        pipeline_id=schedule.version.pipeline_id,
        version_id=schedule.version.version_id,
    )
    return str(created.recurring_run_id)


def _has_content(recurring_run: Any, schedule: Schedule) -> bool:
    """Return whether a recurring run does what ``schedule`` says."""
    reference, trigger = recurring_run.pipeline_version_reference, recurring_run.trigger
    cron = trigger.cron_schedule if trigger else None
    config = recurring_run.runtime_config
    return (
        recurring_run.experiment_id == schedule.experiment_id
        and reference is not None
        and (reference.pipeline_id, reference.pipeline_version_id)
        == (schedule.version.pipeline_id, schedule.version.version_id)
        and cron is not None
        and (cron.cron, cron.start_time, cron.end_time) == (schedule.cron, None, None)
        and ((config.parameters if config else None) or {}) == dict(schedule.arguments)
        # Whole numbers of 64 bits are texts in the API's JSON.
        and str(recurring_run.max_concurrency) == "1"
        and bool(recurring_run.no_catchup)
    )
