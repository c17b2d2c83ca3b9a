"""Schedules, which the API calls recurring runs: of those of a name, the one that was made last is in force.

Of a name means: of one pipeline, in one experiment; what others of a project call the same is left alone.

The API can neither change a recurring run nor keep its name unique, nor does it lock. So new content is made anew, then
the list is read again and all but the newest are disabled. In between both are in force, which at worst starts a run
twice, and the promotion lets only one of two win; the other order could leave none. Of two who do so at the same time
the one who reads last sees both, and both choose the same. For that nothing is enabled again: it would not be the
newest. What is replaced is not deleted, since the cluster would delete its runs with it, one that is training included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_server.client import PipelineServer, is_named, list_all
from pipeline_server.errors import PipelineServerError
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
    """The one in force."""

    is_new: bool
    """Whether this call made it."""

    disabled: tuple[str, ...]
    """The recurring runs that it replaced."""


def put_schedule(server: PipelineServer, schedule: Schedule) -> ScheduleChange:
    """Put a schedule into force in place of the one of its name; the same again changes nothing.

    One run at a time, and none for the times that were missed.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached, or somebody else put another into force at the
            same time.
    """
    there = _list_enabled(server, schedule)
    created_id = None
    if not there or not _has_content(there[0], schedule):
        created = _create(server, schedule)
        created_id = created.recurring_run_id
        # The list of a dry run stays empty.
        there = _list_enabled(server, schedule) or [created]
    newest, *replaced = there
    for one in replaced:
        server.disable_recurring_run(one.recurring_run_id)
    if not _has_content(newest, schedule):
        raise PipelineServerError(
            f"schedule '{schedule.name}': another was put into force at the same time, and stays in force "
            f"({newest.recurring_run_id}). Try again to replace it."
        )
    return ScheduleChange(
        recurring_run_id=newest.recurring_run_id,
        is_new=newest.recurring_run_id == created_id,
        disabled=tuple(one.recurring_run_id for one in replaced),
    )


def _list_enabled(server: PipelineServer, schedule: Schedule) -> list[Any]:
    """Return the recurring runs of the schedule's name, pipeline and experiment that are in force, newest first."""
    of_name = list_all(
        server.list_recurring_runs, "recurring_runs", filter=is_named(schedule.name), namespace=server.namespace
    )
    enabled = (one for one in of_name if one.status == ENABLED and _is_of(one, schedule))
    # The server counts whole seconds: within one all clients go by the id, so that they choose the same.
    return sorted(enabled, key=lambda one: (one.created_at, one.recurring_run_id), reverse=True)


def _create(server: PipelineServer, schedule: Schedule) -> Any:
    return server.create_recurring_run(
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


def _is_of(recurring_run: Any, schedule: Schedule) -> bool:
    """Return whether a recurring run is of the schedule's pipeline, in its experiment."""
    reference = recurring_run.pipeline_version_reference
    return (
        recurring_run.experiment_id == schedule.experiment_id
        and reference is not None
        and reference.pipeline_id == schedule.version.pipeline_id
    )


def _has_content(recurring_run: Any, schedule: Schedule) -> bool:
    """Return whether a recurring run does what ``schedule`` says."""
    trigger = recurring_run.trigger
    cron = trigger.cron_schedule if trigger else None
    config = recurring_run.runtime_config
    return (
        _is_of(recurring_run, schedule)
        and recurring_run.pipeline_version_reference.pipeline_version_id == schedule.version.version_id
        and cron is not None
        and (cron.cron, cron.start_time, cron.end_time) == (schedule.cron, None, None)
        and ((config.parameters if config else None) or {}) == dict(schedule.arguments)
        # Whole numbers of 64 bits are texts in the API's JSON.
        and str(recurring_run.max_concurrency) == "1"
        and bool(recurring_run.no_catchup)
    )
