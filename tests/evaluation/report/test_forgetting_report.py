import json
from collections.abc import Callable
from pathlib import Path

import pytest

from osft.errors import EvaluationError
from osft.evaluation.report.forgetting_report import ForgettingReport

MakeReport = Callable[..., ForgettingReport]


def test_report_reads_back_as_it_was_written(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report()

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_with_a_probe_reads_back_as_it_was_written(make_report: MakeReport, tmp_path: Path) -> None:
    from osft.evaluation.probe import ProbeComparison

    probe = ProbeComparison(
        documents=3,
        tokens=90,
        base_perplexity=9.0,
        tuned_perplexity=9.5,
        kl=0.1,
        kl_low=None,
        kl_high=None,
        agreement=0.9,
    )
    report = make_report(probe=probe)

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


def test_report_of_too_few_documents_reads_back_as_it_was_written(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(too_few_documents=("prose",))

    report.save(tmp_path / "forgetting.json")

    assert ForgettingReport.load(tmp_path / "forgetting.json") == report


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
