"""From a compiled pipeline to what a person wants of it: uploaded, run once, run on a schedule."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp.dsl.base_component import BaseComponent

from pipeline_server.client import PipelineServer
from pipeline_server.connection import describe_connection, find_connection
from pipeline_server.cron import to_six_fields
from pipeline_server.dry_run import DryRun
from pipeline_server.links import Links
from pipeline_server.runs import describe, ensure_experiment, name_run, start_run
from pipeline_server.schedules import Schedule, ScheduleChange, put_schedule
from pipeline_server.transport import Transport
from pipeline_server.upload import PipelineVersion, upload_version
from pipelines.settings import require_all, with_defaults


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What to do with one pipeline.

    Raises:
        ConfigError: if a parameter without a default has no value, or the schedule is no cron line.
    """

    pipeline: BaseComponent
    file: Path
    """The compiled pipeline."""

    arguments: Mapping[str, Any]
    """Parameters of the runs; the others keep their defaults."""

    experiment: str
    name: str | None = None
    """Name of the run or schedule; by default it says what it is."""

    run: bool = False
    """Whether to start a run."""

    cron: str | None = None
    """When to start runs from now on."""

    def __post_init__(self) -> None:
        if self.run or self.cron is not None:
            require_all(self.arguments, self.pipeline)
        if self.cron is not None:
            to_six_fields(self.cron)

    def schedule(self, experiment_id: str, version: PipelineVersion) -> Schedule:
        """Return the schedule; its name stays when its content changes, which is how it finds the one before.

        The server names the runs of a schedule by itself: the first 25 of the letters, digits and hyphens of the
        schedule's name in lower case, a random part, and the run's number. So what differs comes first: the model.
        """
        all_arguments = with_defaults(self.arguments, self.pipeline)
        model = all_arguments.get("promote_model_name")
        return Schedule(
            name=self.name or " ".join(part for part in (model, self.pipeline.name) if part),
            description=describe(all_arguments),
            cron=to_six_fields(self.cron or ""),
            experiment_id=experiment_id,
            version=version,
            arguments=self.arguments,
        )


def open_server(environment: Mapping[str, str], write_requests: Callable[[str], None] | None) -> PipelineServer:
    """Return the server that the environment, the kubeconfig or the service account describes.

    Args:
        environment: the environment.
        write_requests: takes each request as a line, in place of the server; ``None`` sends them.

    Raises:
        ConfigError: if there is no way to a server.
        PipelineServerError: if it cannot be used.
    """
    if write_requests:
        return PipelineServer(describe_connection(environment), DryRun(write_requests))
    connection = find_connection(environment)
    return PipelineServer(connection, Transport(connection))


def submit(server: PipelineServer, submission: Submission, now: datetime) -> Iterator[str]:
    """Do what the submission says, and yield a line for each thing done, as it is done.

    Args:
        server: where to.
        submission: what to do.
        now: the time that goes into a run's name.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached.
    """
    pipeline, links = submission.pipeline, Links(connection=server.connection)
    version = upload_version(server, submission.file, pipeline.name, pipeline.description or "")
    done = "uploaded" if version.is_new else "there already, not uploaded again"
    yield f"version {version.name} of {pipeline.name}: {done}: {links.version(version.pipeline_id, version.version_id)}"
    if not submission.run and submission.cron is None:
        return
    experiment_id = ensure_experiment(server, submission.experiment)
    if submission.run:
        name = submission.name or name_run(with_defaults(submission.arguments, pipeline), now)
        run_id = start_run(server, version, experiment_id, name, submission.arguments)
        yield f"run '{name}': started: {links.run(run_id)}"
    if submission.cron is not None:
        schedule = submission.schedule(experiment_id, version)
        yield from _tell(schedule, put_schedule(server, schedule), links)


def _tell(schedule: Schedule, change: ScheduleChange, links: Links) -> Iterator[str]:
    """Yield what became of a schedule."""
    done = "created" if change.is_new else "there already, and unchanged"
    yield f"schedule '{schedule.name}' ({schedule.cron}): {done}: {links.schedule(change.recurring_run_id)}"
    for replaced in change.disabled:
        yield f"schedule '{schedule.name}': the one before is disabled, its runs go on: {links.schedule(replaced)}"
