import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.errors import EvaluationError
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.probe import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport

MakeReport = Callable[..., ForgettingReport]
MakeProbe = Callable[..., ProbeComparison]


def test_report_reads_back_as_it_was_written(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report()

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_with_a_probe_reads_back_as_it_was_written(
    make_report: MakeReport, make_probe: MakeProbe, tmp_path: Path
) -> None:
    report = make_report(probe=make_probe(kl_low=None, kl_high=None))

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_of_too_few_documents_reads_back_as_it_was_written(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(too_few_documents=("prose",))

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_with_pools_reads_back_as_it_was_written(
    make_report: MakeReport, pool_fields: dict[str, Any], tmp_path: Path
) -> None:
    report = make_report(**pool_fields)

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_of_a_group_that_is_scored_as_one_reads_back_as_it_was_written(
    make_report: MakeReport, make_task: Callable[..., TaskComparison], tmp_path: Path
) -> None:
    report = make_report(tasks=(make_task(task="capitals", leaves=("capitals[eu]", "capitals[asia]")),))

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_that_does_not_name_the_tasks_of_groups_is_read(make_report: MakeReport, tmp_path: Path) -> None:
    path = tmp_path / "forgetting.json"
    report = make_report()
    report.save(path)
    content = json.loads(path.read_text())
    for task in content["tasks"]:
        del task["leaves"]
    path.write_text(json.dumps(content))

    assert ForgettingReport.load(path).tasks == report.tasks


def test_bound_asks_nothing_of_sets_that_do_not_count(make_report: MakeReport, pool_fields: dict[str, Any]) -> None:
    report = make_report(**pool_fields)

    assert report.has_bound
    assert all(task.loss_upper is None for task in report.tasks if task.task == "holdout_v0003")


def test_report_without_a_list_of_too_few_documents_is_read(make_report: MakeReport, tmp_path: Path) -> None:
    path = tmp_path / "forgetting.json"
    make_report().save(path)
    content = json.loads(path.read_text())
    del content["too_few_documents"]
    path.write_text(json.dumps(content))

    assert ForgettingReport.load(path).too_few_documents == ()


@pytest.mark.parametrize("content", [None, "", "[]", '{"tasks": []}', '{"tasks": [{}]}'])
def test_what_is_no_report_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "forgetting.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(EvaluationError, match=r"forgetting\.json: no report of an evaluation .* Run the evaluation"):
        ForgettingReport.load(path)
