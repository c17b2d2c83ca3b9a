import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.pairing import DocumentPair
from osft.evaluation.probe import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.page import write_html
from osft.evaluation.report.points import MINUS

MakeReport = Callable[..., ForgettingReport]
MakeProbe = Callable[..., ProbeComparison]
MakeTask = Callable[..., TaskComparison]
MakeDocument = Callable[..., DocumentPair]
EVIL = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)>"


def written(report: ForgettingReport, folder: Path, documents: list[DocumentPair] | None = None) -> str:
    write_html(report, documents or [], folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def seen(page: str) -> str:
    """Return the page's text as it is read, without elements and line breaks."""
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<body>") :]).split())


def test_page_loads_nothing_and_runs_nothing(
    make_report: MakeReport, make_document: MakeDocument, tmp_path: Path
) -> None:
    page = written(make_report(), tmp_path, [make_document(0), make_document(1, change=1.0)])

    assert not re.findall(r"https?://|//\w|<script|<link|<img|<iframe|<a\b|@import|url\(|\son\w+=", page)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page


def test_untrusted_text_is_escaped_wherever_it_comes_from(
    make_report: MakeReport, make_task: MakeTask, make_document: MakeDocument, tmp_path: Path
) -> None:
    texts = dict.fromkeys(("task", "prompt", "gold", "base_answer", "tuned_answer"), EVIL)
    report = make_report(
        base=EVIL,
        tuned=EVIL,
        tasks=(make_task(task=EVIL, metric=EVIL),),
        unbounded_tasks=(EVIL,),
        reasons=(EVIL,),
        settings={"max_forgetting": 0.05, "min_target_gain": 0.0, EVIL: {EVIL: EVIL}},
        versions={EVIL: EVIL},
        training={EVIL: EVIL},
        data={EVIL: [EVIL]},
    )

    page = written(report, tmp_path, [make_document(0, **texts), make_document(1, change=1.0, **texts)])

    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 20


def test_page_of_a_chain_shows_each_tasks_best_version_and_what_was_lost_since(
    make_report: MakeReport, chain_fields: dict[str, Any], tmp_path: Path
) -> None:
    text = seen(written(make_report(**chain_fields), tmp_path))

    for expected in (
        "Cumulative forgetting 5.0 points lost on average since each task's best version; at most 8.8 with 95%",
        "The limit is 10.0.",
        "Since the origin 8.0 points lost on average since the model that the chain began with, in the 1 task that it",
        f"capitals[eu] acc 100.0% v0001 90.0% {MINUS}10.0 {MINUS}15.0 to {MINUS}4.0",
        "holdout_v0002 acc 96.0% v0002 96.0% 0.0",
        "left out prose is not compared with v0001",
    ):
        assert expected in text


def test_page_shows_each_earlier_set_and_what_they_count_as(
    make_report: MakeReport, pool_fields: dict[str, Any], tmp_path: Path
) -> None:
    text = seen(written(make_report(**pool_fields), tmp_path))

    for expected in (
        "holdout_v0001 acc counts in earlier_holdouts_acc 96.0% 96.0% 0.0",
        "earlier_holdouts_acc acc 2 held-out sets, as one task 96.0% 96.0% 0.0",
        "holdout_v0003 perplexity, lower is better shown in earlier_holdouts_perplexity",
        "earlier_holdouts_perplexity perplexity, lower is better 1 held-out set, too few documents to count",
        f"earlier_holdouts_acc acc 2 held-out sets, as one task 98.0% of each set 96.0% {MINUS}2.0",
        "in the 2 tasks that it was asked",
    ):
        assert expected in text


def test_page_without_a_chain_names_no_versions(make_report: MakeReport, tmp_path: Path) -> None:
    assert "est version" not in seen(written(make_report(), tmp_path))


def test_a_half_of_a_character_does_not_break_the_page(
    make_report: MakeReport, make_document: MakeDocument, tmp_path: Path
) -> None:
    page = written(make_report(), tmp_path, [make_document(0, prompt="broken \ud800 emoji")])

    assert "broken ? emoji" in page


def test_page_holds_verdict_bound_limit_scores_and_settings(make_report: MakeReport, tmp_path: Path) -> None:
    text = seen(written(make_report(), tmp_path))

    for expected in (
        "Passed The tuned model may replace the base: it forgot 1.5 points (at most 3.2 with 95% confidence, chance in "
        "prose left out), and it gained 100.0 points on the new data. Before",
        "Before models/old After runs/new",
        "at most 3.2 with 95% confidence, chance in prose left out. The limit is 5.0.",
        "3 went from right to wrong, 100 from wrong to right",
        "Why it passed Forgetting is 1.5 points, at most 3.3, within the limit of 5.0 points.",
        f"capitals[eu] acc 100.0% 97.0% {MINUS}3.0 {MINUS}7.2 to +1.3 3 lost 0 gained 100",
        "f1 0.125 → 1",
        "real gain, p &lt; 0.001",
        f"Backward transfer {MINUS}1.5",
        "Average accuracy 50.0% → 98.5%",
        "No document was answered worse than before.",
        "learning rate 5e-06",
        "rows train 12,345 train tokens 1,000,000",
        "seed 20260",
        "lm-eval 0.4.13",
    ):
        assert expected in text


def test_a_failure_is_red(make_report: MakeReport, tmp_path: Path) -> None:
    page = written(make_report(passed=False, forgetting_upper=0.2), tmp_path)

    assert '<span class="badge loss">Not passed</span>' in page
    assert '<h1 class="loss">The tuned model should not replace the base' in page
    assert '<div class="gauge over"' in page
    assert "Why it did not pass" in page


def test_a_task_without_an_interval_is_marked(make_report: MakeReport, make_task: MakeTask, tmp_path: Path) -> None:
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    report = make_report(tasks=(make_task(task="bleu", n=7, **bare),), unbounded_tasks=("bleu",))

    page = written(report, tmp_path)

    assert '<span class="mark warn">no interval</span>' in page
    assert '<i class="range"' not in page
    assert "The change of bleu is taken as certain" in seen(page)
    assert (
        "No interval : a score that does not come from single documents, or one document whose score has no limits;"
        in seen(page)
    )
    assert "points lost on average; how much more is not known: no interval for bleu. The limit is 5.0." in seen(page)
    assert "too few documents" not in page


def test_a_task_with_too_few_documents_is_marked(make_report: MakeReport, make_task: MakeTask, tmp_path: Path) -> None:
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    report = make_report(
        tasks=(make_task(task="lone", n=1, **bare),), unbounded_tasks=(), too_few_documents=("lone",), passed=False
    )

    page = written(report, tmp_path)

    assert '<span class="mark warn">one document: no interval</span>' in page
    assert "it may have forgotten more than was measured (too few documents in lone), and it gained" in seen(page)
    assert "too few documents One document of lone does not tell what was lost." in seen(page)
    assert "not fully bounded" not in page


def test_a_base_that_answers_nothing_right_is_marked(
    make_report: MakeReport, make_task: MakeTask, tmp_path: Path
) -> None:
    page = written(make_report(tasks=(make_task(base=0.0, tuned=0.0, delta=0.0),)), tmp_path)

    assert '<span class="mark warn">the base answers nothing right: nothing can be lost here</span>' in page


def test_page_without_marks_does_not_explain_them(make_report: MakeReport, make_task: MakeTask, tmp_path: Path) -> None:
    page = written(make_report(tasks=(make_task(),), unbounded_tasks=(), training={}, data={}), tmp_path)

    assert "<b>No interval</b>" not in page
    assert "not fully bounded" not in page
    assert "What it was trained on" not in page
    assert "On your probe text" not in page


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.08, 0.13), "With 95% confidence 0.08 to 0.13."),
        ((None, None), "no interval: one document, or copies of one"),
    ],
)
def test_page_shows_the_probe(
    make_report: MakeReport,
    make_probe: MakeProbe,
    tmp_path: Path,
    ends: tuple[float | None, float | None],
    expected: str,
) -> None:
    probe = make_probe(documents=1, tokens=12345, kl_low=ends[0], kl_high=ends[1], agreement=0.934)

    text = seen(written(make_report(probe=probe), tmp_path))

    assert "Both models read 12,345 tokens in 1 document." in text
    assert "Perplexity 9 → 9.5" in text
    assert "Agreement 93.4%" in text
    assert expected in text


def test_documents_that_became_worse_are_open_and_those_that_became_better_collapsed(
    make_report: MakeReport, make_document: MakeDocument, tmp_path: Path
) -> None:
    worse = [make_document(number) for number in range(25)]

    page = written(make_report(), tmp_path, [*worse, make_document(0, change=1.0, task="elements")])

    assert page.count('<article class="document">') == 21
    assert page.count("<details open>") == 1
    assert "capitals[eu] 25 documents, 20 shown" in seen(page)
    assert "elements 1 document Document 0" in seen(page)


def test_documents_without_a_score_are_not_said_to_be_no_worse(
    make_report: MakeReport, make_document: MakeDocument, tmp_path: Path
) -> None:
    unscored = make_document(0, task="bleu", change=None)
    sentence = "The documents of bleu have no score of their own; samples.jsonl has both answers."

    alone = seen(written(make_report(), tmp_path, [unscored]))
    beside = seen(written(make_report(), tmp_path, [unscored, make_document(1)]))

    assert alone.count(sentence) == 2
    assert "than before" not in alone
    assert beside.count(sentence) == 2
    assert "No other document was answered better than before." in beside
    assert "answered worse" not in beside


def test_a_reason_stays_in_order_whatever_name_is_in_it(make_report: MakeReport, tmp_path: Path) -> None:
    page = written(make_report(reasons=("evil\u202e lost 3.0 points.",)), tmp_path)

    assert '<li><bdi dir="ltr">evil lost 3.0 points.</bdi></li>' in page


def test_page_of_a_broken_model_has_few_digits(make_report: MakeReport, make_task: MakeTask, tmp_path: Path) -> None:
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    tasks = (
        make_task(base=12.3, tuned=3.4e15, delta=-3.4e15, higher_is_better=False, **bare),
        make_task(task="kept"),
    )
    shares = {"forgetting": 1.4e14, "forgetting_upper": 2.8e14, "backward_transfer": -1.4e14}

    page = written(make_report(tasks=tasks, passed=False, **shares), tmp_path)

    assert not re.search(r"[\d,]{10}", page)
    assert "Forgetting more than 1,000 points lost on average; no bound below 1,000" in seen(page)
    assert '<i class="limit" style="left: 4.35%">' in page


def test_the_same_report_gives_the_same_bytes(
    make_report: MakeReport, make_document: MakeDocument, tmp_path: Path
) -> None:
    documents = [make_document(0), make_document(1, change=1.0)]

    assert written(make_report(), tmp_path, documents) == written(make_report(), tmp_path, documents)
