import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.probe import ProbeComparison
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.markdown import escape_markdown, write_markdown
from osft.evaluation.report.points import MINUS

MakeReport = Callable[..., ForgettingReport]
MakeProbe = Callable[..., ProbeComparison]
MakeTask = Callable[..., TaskComparison]
READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
NASTY = "a|b\n| c | <script>alert(1)</script> [x](http://evil) `code` **bold** __u__ \\| &amp; ~~s~~ # h"


def written(report: ForgettingReport, folder: Path) -> str:
    write_markdown(report, folder / "report.md")
    return (folder / "report.md").read_text(encoding="utf-8")


def broken(make_task: MakeTask, make_probe: MakeProbe) -> dict[str, Any]:
    """Return a report's fields for a perplexity that went from 12.3 to 3.4e15."""
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    task = make_task(base=12.3, tuned=3.4e15, delta=-3.4e15, higher_is_better=False, **bare)
    probe = make_probe(tuned_perplexity=1e300, kl=700.0, kl_low=None, kl_high=None, agreement=0.0)
    values = {"forgetting": 1.4e14, "forgetting_upper": 2.8e14, "backward_transfer": -1.4e14}
    return {"tasks": (task, make_task(task="kept")), "probe": probe, "passed": False} | values


def cells(markdown: str) -> list[list[str]]:
    """Return the tables' rows as a reader shows them."""
    rows: list[list[str]] = []
    for before, token in pairwise(READER.parse(markdown)):
        if token.type == "tr_open":
            rows.append([])
        elif before.type in ("th_open", "td_open"):
            rows[-1].append(shown(token))
    return rows


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def test_summary_holds_verdict_reasons_and_every_number_of_a_task(make_report: MakeReport, tmp_path: Path) -> None:
    summary = written(make_report(), tmp_path)

    assert summary.startswith("## Passed\n\n**The tuned model may replace the base: it forgot 1.5 points")
    assert "- Forgetting is 1.5 points, at most 3.3, within the limit of 5.0 points." in summary
    rows = {row[0]: row[1:] for row in cells(summary) if row[0] != "Task"}
    assert rows == {
        "capitals[eu] (acc)": ["100.0%", "97.0%", f"{MINUS}3.0", f"{MINUS}7.2 to +1.3", "3", "0", "100"],
        "prose (perplexity, lower is better)": ["12", "12", "+0", "no interval", "—", "—", "5"],
        "elements (acc)": ["0.0%", "100.0%", "+100.0 (p < 0.001)", "+95.0 to +100.0", "0", "100", "100"],
    }
    assert "The change of prose is taken as certain" in summary


def test_summary_marks_a_base_that_answers_nothing_right(
    make_report: MakeReport, make_task: MakeTask, tmp_path: Path
) -> None:
    summary = written(make_report(tasks=(make_task(base=0.0, tuned=0.0, delta=0.0),)), tmp_path)

    assert cells(summary)[1][0] == "capitals[eu] (acc): the base answers nothing right: nothing can be lost here"


def test_summary_of_too_few_documents_names_no_confidence(
    make_report: MakeReport, make_task: MakeTask, tmp_path: Path
) -> None:
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    report = make_report(
        tasks=(make_task(n=1, **bare),), unbounded_tasks=(), too_few_documents=("prose",), passed=False
    )

    summary = written(report, tmp_path)

    assert "(too few documents in prose)" in summary.replace("\\", "")
    assert "confidence" not in summary


def test_summary_of_a_bleu_alone_names_no_confidence(
    make_report: MakeReport, make_task: MakeTask, tmp_path: Path
) -> None:
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))

    summary = written(make_report(tasks=(make_task(task="bleu", **bare),), unbounded_tasks=("bleu",)), tmp_path)

    assert "it forgot 1.5 points (how much more is not known: no interval for bleu)" in summary
    assert "confidence" not in summary


def test_summary_of_a_broken_model_has_few_digits(
    make_report: MakeReport, make_task: MakeTask, make_probe: MakeProbe, tmp_path: Path
) -> None:
    summary = written(make_report(**broken(make_task, make_probe)), tmp_path)

    assert not re.search(r"[\d,]{10}", summary)


def test_summary_of_a_failure_says_so_first(make_report: MakeReport, tmp_path: Path) -> None:
    summary = written(make_report(passed=False, target_gain=None), tmp_path)

    assert summary.startswith("## Not passed\n\n**The tuned model should not replace the base")


def test_summary_of_a_chain_names_the_best_version_of_each_task(
    make_report: MakeReport, chain_fields: dict[str, Any], tmp_path: Path
) -> None:
    summary = written(make_report(**chain_fields), tmp_path)

    assert [row for row in cells(summary) if len(row) == 6] == [
        ["Task", "Best version", "Its score", "After", "Change", "95% interval"],
        ["capitals[eu]", "v0001", "100.0%", "90.0%", f"{MINUS}10.0", f"{MINUS}15.0 to {MINUS}4.0"],
        ["holdout_v0002", "v0002", "96.0%", "96.0%", "0.0", f"{MINUS}4.0 to +4.0"],
    ]
    assert "- Cumulative forgetting: 5.0 points, the mean loss since each task's best version; at most 8.8" in summary
    assert "- Since the origin: 8.0 points; at most 12.2 with 95% confidence" in summary
    assert "prose is not compared with v0001: prose had 4 documents then" in summary.replace("\\", "")


def test_summary_shows_each_earlier_set_and_what_they_count_as(
    make_report: MakeReport, pool_fields: dict[str, Any], tmp_path: Path
) -> None:
    summary = written(make_report(**pool_fields), tmp_path).replace("\\", "")

    for expected in (
        "| holdout_v0002 (acc): counts in earlier_holdouts_acc | 96.0% |",
        "| earlier_holdouts_acc (acc): 2 held-out sets, as one task | 96.0% |",
        "(perplexity, lower is better): 1 held-out set, too few documents to count |",
        f"| earlier_holdouts_acc: 2 held-out sets, as one task | of each set | 98.0% | 96.0% | {MINUS}2.0 |",
    ):
        assert expected in summary


def test_summary_without_a_chain_names_no_versions(make_report: MakeReport, tmp_path: Path) -> None:
    assert "best version" not in written(make_report(), tmp_path)


def test_summary_tells_of_the_probe(make_report: MakeReport, make_probe: MakeProbe, tmp_path: Path) -> None:
    summary = written(make_report(probe=make_probe()), tmp_path)

    assert "- Perplexity: 9 before, 9.5 after" in summary
    assert "- KL divergence: 0.1 nats a token, with 95% confidence 0.08 to 0.13\n- Agreement: 90.0%" in summary


def test_a_nasty_name_breaks_neither_table_nor_text(
    make_report: MakeReport, make_task: MakeTask, tmp_path: Path
) -> None:
    report = make_report(tasks=(make_task(task=NASTY, metric=NASTY),), reasons=(NASTY,), base=NASTY)

    summary = written(report, tmp_path)

    header, row = cells(summary)
    one_line = " ".join(NASTY.split())
    assert len(header) == len(row) == 8
    assert row[0] == f"{one_line} ({one_line})"
    kinds = {child.type for token in READER.parse(summary) for child in token.children or ()}
    assert not kinds & {"link_open", "html_inline", "code_inline", "image", "em_open", "s_open"}
    assert not [token for token in READER.parse(summary) if token.type == "html_block"]


@pytest.mark.parametrize("address", ["https://evil.example", "www.evil.example", "HTTP://evil.example", "a@b.example"])
def test_an_address_does_not_become_a_link(address: str) -> None:
    escaped = escape_markdown(address)

    assert not re.search(r"(?i)(?<!\\)://|www\.|a@", escaped)


@given(st.text(alphabet=st.sampled_from("ab\\|`*_{}[]<>()#+-.!~&$^@:/w \n\té"), max_size=40))
def test_escaped_text_is_read_as_it_was_in_a_cell(text: str) -> None:
    markdown = f"| head | second |\n| --- | --- |\n| x{escape_markdown(text)}x | y |\n"

    _, row = cells(markdown)

    assert row == [f"x{' '.join(text.split())}x", "y"]
