"""Uploads: a version is named by its content, and the same is never there twice."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline_server.client import PipelineServer
from pipeline_server.errors import PipelineServerError
from pipeline_server.upload import upload_version
from tests.pipeline_server.server import Fault, KfpServer

Connect = Callable[[KfpServer], PipelineServer]


def test_the_first_upload_creates_the_pipeline_and_a_version_named_by_its_content(
    kfp: KfpServer, connect: Connect, pipeline_file: Path
) -> None:
    version = upload_version(connect(kfp), pipeline_file, "osft-tiny", "what for")

    (pipeline,), (kept,) = kfp.api.things["pipelines"], kfp.api.things["versions"]
    assert (pipeline["display_name"], pipeline["description"]) == ("osft-tiny", "what for")
    assert version.name == kept["display_name"]
    assert version.name == f"sha256-{hashlib.sha256(pipeline_file.read_bytes()).hexdigest()[:12]}"
    assert (version.pipeline_id, version.version_id) == (pipeline["pipeline_id"], kept["pipeline_version_id"])
    assert version.is_new
    assert kfp.api.files[version.version_id] == pipeline_file.read_bytes()


def test_unchanged_content_is_not_uploaded_twice(kfp: KfpServer, connect: Connect, pipeline_file: Path) -> None:
    first = upload_version(connect(kfp), pipeline_file, "osft-tiny", "")

    second = upload_version(connect(kfp), pipeline_file, "osft-tiny", "")

    assert not second.is_new
    assert second.version_id == first.version_id
    assert kfp.asked("POST", "upload_version") == 1


def test_changed_content_is_another_version_of_the_same_pipeline(
    kfp: KfpServer, connect: Connect, pipeline_file: Path
) -> None:
    first = upload_version(connect(kfp), pipeline_file, "osft-tiny", "")
    pipeline_file.write_text("# changed\n" + pipeline_file.read_text())

    second = upload_version(connect(kfp), pipeline_file, "osft-tiny", "")

    assert second.is_new
    assert second.pipeline_id == first.pipeline_id
    assert len(kfp.api.things["versions"]) == 2


@pytest.mark.parametrize("code", [500, 503, 429, 0])
def test_an_upload_whose_answer_was_lost_is_there_once(
    kfp: KfpServer, connect: Connect, pipeline_file: Path, code: int
) -> None:
    kfp.faults.append(Fault(code=code, path="/pipelines", method="POST", is_done=True, headers={"Retry-After": "0"}))
    kfp.faults.append(Fault(code=code, path="/upload_version", is_done=True, headers={"Retry-After": "0"}))

    version = upload_version(connect(kfp), pipeline_file, "osft-tiny", "")

    assert [one["pipeline_version_id"] for one in kfp.api.things["versions"]] == [version.version_id]
    assert kfp.api.files[version.version_id] == pipeline_file.read_bytes()
    assert len(kfp.api.things["pipelines"]) == 1


def test_a_server_that_cannot_read_the_pipeline_may_be_too_old(
    kfp: KfpServer, connect: Connect, pipeline_file: Path
) -> None:
    pipeline_file.write_text("other: thing\n")

    with pytest.raises(PipelineServerError, match=r"400 .*unknown template format.*too old for it: KFP 2.15 will do"):
        upload_version(connect(kfp), pipeline_file, "osft-tiny", "")


def test_a_conflict_that_stays_one_is_an_error(kfp: KfpServer, connect: Connect, pipeline_file: Path) -> None:
    kfp.faults.append(Fault(code=409, path="/upload_version"))

    with pytest.raises(PipelineServerError, match=r"409 a fault\. Somebody else changed it meanwhile: try again"):
        upload_version(connect(kfp), pipeline_file, "osft-tiny", "")
