"""Links: to RHOAI's dashboard, to KFP's own UI, or to the API."""

import pytest

from pipeline_server.connection import Connection
from pipeline_server.links import Links

ROUTE = "https://ds-pipeline-dspa-my-project.apps.example"
DASHBOARD = "https://rhods-dashboard.apps.example"


@pytest.mark.parametrize("host", [ROUTE, "https://ds-pipeline-dspa.my-project.svc:8443"])
def test_on_openshift_ai_the_dashboard_shows_what_was_made(host: str) -> None:
    links = Links(connection=Connection(host=host, project="my-project", dashboard=DASHBOARD))

    assert links.version("p", "v") == f"{DASHBOARD}/pipelines/my-project/p/v/view"
    assert links.run("r") == f"{DASHBOARD}/pipelineRuns/my-project/runs/r"
    assert links.schedule("s") == f"{DASHBOARD}/pipelineRuns/my-project/schedules/s"


@pytest.mark.parametrize(
    "connection",
    [
        Connection(host=ROUTE),
        Connection(host=ROUTE, project="my-project"),
        Connection(host=ROUTE, dashboard=DASHBOARD),
        Connection(host=ROUTE, project="project-of-another-login", dashboard=DASHBOARD),
    ],
)
def test_without_the_dashboard_or_the_project_a_link_leads_to_the_api(connection: Connection) -> None:
    links = Links(connection=connection)

    assert links.version("p", "v") == f"{ROUTE}/apis/v2beta1/pipelines/p/versions/v"
    assert links.run("r") == f"{ROUTE}/apis/v2beta1/runs/r"
    assert links.schedule("s") == f"{ROUTE}/apis/v2beta1/recurringruns/s"


@pytest.mark.parametrize(
    ("dashboard", "page"), [(None, "https://kfp.example"), ("https://ui.example", "https://ui.example")]
)
def test_another_kfp_server_has_a_ui_of_its_own(dashboard: str | None, page: str) -> None:
    links = Links(connection=Connection(host="https://kfp.example", dashboard=dashboard))

    assert links.version("p", "v") == f"{page}/#/pipelines/details/p/version/v"
    assert links.run("r") == f"{page}/#/runs/details/r"
    assert links.schedule("s") == f"{page}/#/recurringrun/details/s"
