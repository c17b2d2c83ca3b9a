import re
from pathlib import Path
from typing import Any

import pytest

from osft.data.processing.page import remarks, verdict_sentence, write_processing_page
from osft.data.processing.report import ProcessingConfig, ProcessingReport
from osft.data.processing.splitting import LengthReport, SplitReport


def make_report(**changes: Any) -> ProcessingReport:
    values: dict[str, Any] = {
        "config": ProcessingConfig(model="tiny", max_seq_len=1_500),
        "output_format": "messages",
        "rows_in": 1_000,
        "rows_train": 900,
        "rows_holdout": 100,
        "rows_dropped_too_long": 0,
        "rows_truncated": 0,
        "too_long_lines": (),
        "train": SplitReport(rows=900, tokens=90_000, trained_tokens=45_000),
        "holdout": SplitReport(rows=100, tokens=9_900, trained_tokens=5_000),
        "lengths": LengthReport(min=9, mean=99.9, median=80, p95=400, max=1_400),
        "length_histogram": {"64": 300, "128": 500, "2048": 200},
        "messages_not_rendered": 0,
        "reasoning_not_rendered": 0,
        "rows_with_control_text": 0,
        "key": "ab12",
    }
    return ProcessingReport(**values | changes)


def text_of(report: ProcessingReport, tmp_path: Path) -> str:
    """Return the page without tags, styles and charts."""
    target = tmp_path / "report.html"
    write_processing_page(report, target)
    html = re.sub(r"<(style|svg).*?</\1>", "", target.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_page_shows_rows_and_tokens_of_both_sides(tmp_path: Path) -> None:
    text = text_of(make_report(), tmp_path)

    assert "Processed 900 rows to train on, 100 held out. with the tokenizer of tiny" in text
    assert "to train on 900 90,000 45,000 50.0% 100.0" in text
    assert "held out 100 9,900 5,000 50.5% 99.0" in text
    assert "Nothing was lost" in text


def test_the_length_limit_is_marked_in_the_distribution(tmp_path: Path) -> None:
    write_processing_page(make_report(), tmp_path / "report.html")

    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "max_seq_len 1,500</text>" in html
    assert 'role="img" aria-label="Length of a row in tokens"' in html


def test_dropped_rows_are_counted_and_listed(tmp_path: Path) -> None:
    report = make_report(rows_in=1_004, rows_dropped_too_long=4, too_long_lines=(3, 7, 8, 9))

    text = text_of(report, tmp_path)

    assert "Processed, with remarks" in text
    assert "4 rows (0.4%) were dropped, too long for max_seq_len 1,500. The longest has 1,400 tokens" in text
    assert "Lines 3, 7\N{EN DASH}9 " in text
    assert "more" not in text[text.index("Lines 3") :]


def test_a_long_list_of_lines_is_cut(tmp_path: Path) -> None:
    report = make_report(rows_in=6_000, rows_dropped_too_long=5_000, too_long_lines=tuple(range(1, 2_000, 2)))

    text = text_of(report, tmp_path)

    assert "197, 199 and 4,900 more" in text


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("rows_truncated", "3 rows were cut at max_seq_len 1,500"),
        ("messages_not_rendered", "The chat template leaves out 3 system or user messages"),
        ("reasoning_not_rendered", "The chat template leaves out the reasoning of 3 assistant turns"),
        ("rows_with_control_text", "3 rows spell out a special token"),
    ],
)
def test_each_loss_is_told(field: str, sentence: str) -> None:
    found = remarks(make_report(**{field: 3}))

    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_a_missing_holdout_is_told() -> None:
    report = make_report(rows_in=900, rows_holdout=0, holdout=SplitReport(rows=0, tokens=0, trained_tokens=0))

    assert remarks(report) == ["No row is held out: how well the model does on unseen rows cannot be measured."]


def test_documents_are_counted_in_blocks(tmp_path: Path) -> None:
    config = ProcessingConfig(model="tiny", max_seq_len=1_500, data_format="documents", block_size=512)

    report = make_report(config=config, output_format="documents", rows_in=50)

    assert verdict_sentence(report) == "900 blocks to train on, 100 held out."
    assert "Tokens a block" in text_of(report, tmp_path)


def test_a_hostile_model_name_is_shown_as_text(tmp_path: Path) -> None:
    config = ProcessingConfig(model="<script>alert(1)</script>" + "x" * 10_000, max_seq_len=1_500)

    write_processing_page(make_report(config=config), tmp_path / "report.html")

    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert len(html) < 60_000


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write_processing_page(make_report(), tmp_path / "a.html")
    write_processing_page(make_report(), tmp_path / "b.html")

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
