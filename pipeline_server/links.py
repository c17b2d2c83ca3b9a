"""Addresses of what was made, to follow with a browser.

RHOAI shows pipelines in its dashboard, whose paths of version 2 lead to the right pages in version 3 as well; other KFP
servers have a UI of their own. Where neither is known, a link leads to the API, which answers in JSON.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline_server.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """The pages of one server."""

    connection: Connection

    def version(self, pipeline_id: str, version_id: str) -> str:
        """Return where a version of a pipeline is shown."""
        if project := self._project:
            return f"{self.connection.dashboard}/pipelines/{project}/{pipeline_id}/{version_id}/view"
        return self._page(
            f"pipelines/details/{pipeline_id}/version/{version_id}", f"pipelines/{pipeline_id}/versions/{version_id}"
        )

    def run(self, run_id: str) -> str:
        """Return where a run is shown."""
        if project := self._project:
            return f"{self.connection.dashboard}/pipelineRuns/{project}/runs/{run_id}"
        return self._page(f"runs/details/{run_id}", f"runs/{run_id}")

    def schedule(self, recurring_run_id: str) -> str:
        """Return where a recurring run is shown."""
        if project := self._project:
            return f"{self.connection.dashboard}/pipelineRuns/{project}/schedules/{recurring_run_id}"
        return self._page(f"recurringrun/details/{recurring_run_id}", f"recurringruns/{recurring_run_id}")

    @property
    def _project(self) -> str | None:
        """The project whose pages the dashboard shows; ``None`` if it is not sure that the server is that project's."""
        connection = self.connection
        if not connection.is_openshift_ai or not connection.dashboard or not connection.project:
            return None
        # ds-pipeline-<name>-<project>.apps.<cluster> from outside, ds-pipeline-<name>.<project>.svc from within.
        name, _, rest = (urlsplit(connection.host).hostname or "").partition(".")
        is_its_own = name.endswith(f"-{connection.project}") or rest.split(".")[:2] == [connection.project, "svc"]
        return connection.project if is_its_own else None

    def _page(self, of_ui: str, of_api: str) -> str:
        connection = self.connection
        if connection.is_openshift_ai:
            return f"{connection.host}/apis/v2beta1/{of_api}"
        return f"{connection.dashboard or connection.host}/#/{of_ui}"
