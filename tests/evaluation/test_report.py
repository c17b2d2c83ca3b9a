import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from osft.evaluation.forgetting import TaskLabel, compare_documents, compare_values, judge
from osft.evaluation.report import MINUS, DocumentPair, ForgettingReport, verdict_sentence, write_html
from osft.evaluation.table import render_table


def make_report(*, num_lost: int = 3, max_forgetting: float = 0.05, with_target: bool = True) -> ForgettingReport:
    known, after = np.ones(100), np.ones(100)
    after[:num_lost] = 0
    tasks = [
        compare_documents(TaskLabel(task="capitals[eu]", kind="retention", metric="acc"), known, after, seed=0),
        compare_values(
            TaskLabel(task="prose", kind="retention", metric="perplexity", higher_is_better=False),
            base=12.0,
            tuned=12.0,
            num_documents=5,
        ),
    ]
    if with_target:
        label = TaskLabel(task="elements", kind="target", metric="acc")
        tasks.append(compare_documents(label, 1 - known, known, seed=0))
    verdict = judge(tasks, max_forgetting=max_forgetting, min_target_gain=0.0)
    return ForgettingReport(
        tasks=tuple(tasks),
        forgetting=verdict.forgetting,
        target_gain=verdict.target_gain,
        passed=verdict.passed,
        reasons=verdict.reasons,
        settings={"base": "old", "tuned": "new", "max_forgetting": max_forgetting, "min_target_gain": 0.0, "seed": 42},
        versions={"lm-eval": "0.4.13"},
    )


def lost_document(doc_id: int, **fields: str) -> DocumentPair:
    texts = {"prompt": "question", "gold": "right", "base_answer": "right", "tuned_answer": "wrong"} | fields
    return DocumentPair(task="capitals[eu]", doc_id=doc_id, base_score=1.0, tuned_score=0.0, change=-1.0, **texts)


def write_page(tmp_path: Path, documents: list[DocumentPair]) -> str:
    write_html(make_report(), documents, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = write_page(tmp_path, [lost_document(0)])

    assert not re.findall(r"https?://|//\w|<script|<link|<img|<iframe|@import|url\(|\son\w+=", page)
    assert "default-src 'none'" in page


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    page = write_page(tmp_path, [lost_document(0, tuned_answer="</pre><script>alert(1)</script>")])

    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_page_shows_twenty_of_the_documents_that_became_worse_and_counts_all(tmp_path: Path) -> None:
    better = DocumentPair(
        task="elements",
        doc_id=0,
        base_score=0.0,
        tuned_score=1.0,
        change=1.0,
        prompt="",
        gold="",
        base_answer="",
        tuned_answer="",
    )

    page = write_page(tmp_path, [*(lost_document(number) for number in range(25)), better])

    assert page.count('<article class="document">') == 20
    assert "25 documents, the worst 20 here" in page


def test_long_texts_are_cut(tmp_path: Path) -> None:
    page = write_page(tmp_path, [lost_document(0, prompt="start" + "x" * 5_000 + "end", tuned_answer="y" * 5_000)])

    assert "xend" in page
    assert "startx" not in page
    assert "y" * 1_501 not in page


def test_page_holds_verdict_scores_and_settings(tmp_path: Path) -> None:
    page = write_page(tmp_path, [])

    assert "The tuned model may replace the base: it forgot 1.5 points and gained 100.0 on the new data." in page
    assert "97.0%" in page
    assert "0.4.13" in page
    assert "No document was answered worse than before." in page


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (
            make_report(num_lost=30),
            "The tuned model should not replace the base: it forgot 15.0 points and gained 100.0",
        ),
        (make_report(num_lost=0), "it forgot nothing measurable and gained 100.0 on the new data"),
        (make_report(with_target=False), "it forgot 1.5 points and what it gained was not measured"),
    ],
)
def test_verdict_is_one_sentence(report: ForgettingReport, sentence: str) -> None:
    assert sentence in verdict_sentence(report)


def test_terminal_table_shows_tasks_gain_forgetting_and_verdict() -> None:
    console = Console(width=100)

    with console.capture() as capture:
        console.print(render_table(make_report()))

    lines = [" ".join(line.replace(MINUS, "-").split()) for line in capture.get().splitlines()]
    assert "capitals[eu] 100.0% 97.0% -3.0 -7.2 to +1.3 100" in lines
    assert "prose 12 12 +0 — 5" in lines
    assert "new-task gain +100.0" in lines
    assert "forgetting 1.5" in lines
    assert "passed" in lines


def test_terminal_table_says_when_the_gain_was_not_measured() -> None:
    console = Console(width=100)

    with console.capture() as capture:
        console.print(render_table(make_report(num_lost=50, with_target=False)))

    assert "not measured" in capture.get()
    assert "not passed" in capture.get()
