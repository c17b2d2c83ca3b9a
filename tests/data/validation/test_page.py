import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.data.pages import draw_histogram, draw_numbers, format_share
from osft.data.validation.findings import Finding
from osft.data.validation.page import next_steps, verdict_sentence, write_validation_page
from osft.data.validation.report import ValidationReport

MAX_PAGE_BYTES = 200_000
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}\ud800"


class Page(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._in_style = False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.text += f" {data}"


def make_finding(line: int = 3, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "file": "rows.jsonl",
        "line": line,
        "offset": 100 * line,
        "path": "messages[0].role",
        "code": "role-unknown",
        "message": "The role 'human' is not one of system, user.",
    }
    return Finding(**values | changes)


def make_report(**changes: Any) -> ValidationReport:
    values: dict[str, Any] = {
        "source": "rows.jsonl",
        "data_format": "auto",
        "output_format": "messages",
        "shapes": {"messages": 900, "sharegpt": 100},
        "rows_in": 1_000,
        "rows_valid": 1_000,
        "rows_quarantined": 0,
        "rows_too_old": 0,
        "rows_seen": 0,
        "rows_seen_left_out": 0,
        "since": None,
        "time_column": None,
        "seen_files": 0,
        "force": False,
        "unchanged_since": None,
        "blank_lines": 0,
        "findings": (),
        "findings_total": 0,
        "counts_by_code": {},
        "warnings": (),
        "counts_by_warning": {},
        "rows_duplicated": 0,
        "roles": {"user": 1_200, "assistant": 1_200},
        "turns": {},
        "extra_keys": {},
        "row_bytes": {},
        "content_characters": {},
        "on_invalid": "fail",
        "max_invalid_fraction": 0.0,
        "accepted": True,
    }
    return ValidationReport(**values | changes)


def make_refused(**changes: Any) -> ValidationReport:
    findings = tuple(make_finding(line) for line in range(1, 9))
    values = {
        "rows_valid": 992,
        "rows_quarantined": 8,
        "findings": findings,
        "findings_total": 8,
        "counts_by_code": {"role-unknown": 8},
        "accepted": False,
    }
    return make_report(**values | changes)


def html_of(report: ValidationReport, tmp_path: Path) -> str:
    target = tmp_path / "report.html"
    write_validation_page(report, target)
    return target.read_text(encoding="utf-8")


def test_a_page_of_an_accepted_file_says_so_first(tmp_path: Path) -> None:
    page = Page(html_of(make_report(), tmp_path))

    main = page.text[page.text.index("Accepted") :]
    assert main.startswith("Accepted All 1,000 rows of rows.jsonl can be used.")
    assert "What is wrong" not in page.text
    assert "1,000 rows can go on to processing." in page.text


def test_a_page_of_a_refused_file_says_why_and_what_to_do(tmp_path: Path) -> None:
    page = Page(html_of(make_refused(), tmp_path))

    assert "Refused rows.jsonl was refused: 8 of 1,000 rows cannot be used." in page.text
    assert "0.8% of the rows are invalid, and on_invalid is fail" in page.text
    assert "on_invalid=drop with max_invalid_fraction=0.008 or more" in page.text


def test_the_limit_that_was_passed_is_named(tmp_path: Path) -> None:
    page = Page(html_of(make_refused(on_invalid="drop", max_invalid_fraction=0.005), tmp_path))

    assert "0.8% of the rows are invalid, more than max_invalid_fraction 0.005." in page.text


def test_rows_left_out_of_an_accepted_file_are_in_the_verdict(tmp_path: Path) -> None:
    report = make_refused(on_invalid="drop", max_invalid_fraction=0.01, accepted=True)

    page = Page(html_of(report, tmp_path))

    assert "Accepted, with rows left out rows.jsonl goes on without 8 of 1,000 rows." in page.text
    assert "within max_invalid_fraction 0.01" in page.text


def test_a_file_without_a_valid_row_offers_no_limit() -> None:
    report = make_refused(rows_in=8, rows_valid=0, on_invalid="drop", max_invalid_fraction=1.0)

    assert not any("max_invalid_fraction" in step for step in next_steps(report))
    assert verdict_sentence(report) == "rows.jsonl was refused: 8 of 8 rows cannot be used."


def test_an_empty_file_has_a_page(tmp_path: Path) -> None:
    nothing: dict[str, int] = {}
    report = make_report(
        rows_in=0, rows_valid=0, accepted=False, roles=nothing, turns=nothing, row_bytes=nothing, shapes=nothing
    )

    page = Page(html_of(report, tmp_path))

    assert "Refused rows.jsonl holds no rows." in page.text


def test_findings_are_grouped_with_their_place_and_what_the_code_means(tmp_path: Path) -> None:
    findings = (
        make_finding(3),
        make_finding(7, origin="part-1.jsonl.gz, line 2"),
        make_finding(9, path="", code="not-json", message="The line is not JSON: unexpected end (column 7)."),
    )
    report = make_refused(findings=findings, counts_by_code={"not-json": 1, "role-unknown": 7})

    page = Page(html_of(report, tmp_path))

    assert page.text.index("role-unknown 7, 2 shown") < page.text.index("not-json 1")
    assert "rows.jsonl, line 3 byte 300 messages[0].role The role 'human'" in page.text
    assert "part-1.jsonl.gz, line 2 line 7 of rows.jsonl, byte 700" in page.text
    assert "Each line is one JSON value by itself" in page.text


def test_examples_of_a_code_come_from_different_rows(tmp_path: Path) -> None:
    findings = (*(make_finding(1, path=f"messages[{index}].role") for index in range(50)), make_finding(2))

    page = Page(html_of(make_refused(findings=findings, counts_by_code={"role-unknown": 51}), tmp_path))

    assert "51, 2 shown" in page.text


def test_a_code_without_an_example_says_where_its_findings_are(tmp_path: Path) -> None:
    page = Page(html_of(make_refused(counts_by_code={"role-unknown": 8, "content-empty": 1}), tmp_path))

    assert "No example is among the first findings; quarantine.jsonl has all of them." in page.text


def test_duplicates_conversions_and_other_keys_are_shown(tmp_path: Path) -> None:
    warning = make_finding(5, code="duplicate-row", path="", message="The row is the same as line 1.")
    report = make_report(
        warnings=(warning,), counts_by_warning={"duplicate-row": 1}, rows_duplicated=1, extra_keys={"id": 1_000}
    )

    page = Page(html_of(report, tmp_path))

    assert "The row is the same as line 1." in page.text
    assert "1 row repeats an earlier one" in page.text
    assert "sharegpt 100 converted to messages" in page.text
    assert "messages 900 as it was" in page.text
    assert "id 1,000" in page.text


def test_each_distribution_is_drawn(tmp_path: Path) -> None:
    report = make_report(
        turns={"2": 900, "4": 100},
        row_bytes={"512": 400, "1024": 600},
        content_characters={"user": {"64": 1_200}, "assistant": {"128": 1_000, "256": 200}},
    )

    html = html_of(report, tmp_path)

    titles = re.findall(r'aria-label="([^"]+)"', html)
    assert titles[1:] == [
        "Messages in a conversation",
        "Size of a row in bytes",
        "Length of user messages",
        "Length of assistant messages",
    ]


def test_hostile_texts_are_shown_as_text(tmp_path: Path) -> None:
    finding = make_finding(code=HOSTILE, path=HOSTILE, message=HOSTILE, file=HOSTILE, origin=HOSTILE)
    report = make_refused(
        source=HOSTILE,
        data_format=HOSTILE,
        findings=(finding,),
        counts_by_code={HOSTILE: 1},
        extra_keys={HOSTILE: 1},
        roles={HOSTILE: 1},
        content_characters={HOSTILE: {"1": 1}},
    )

    page = Page(html_of(report, tmp_path))

    assert "script" not in page.tags
    assert "<script>alert(1)</script>\"'&{{ 7*7 }}?" in page.text


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    html = html_of(make_refused(row_bytes={"512": 400, "1024": 600}), tmp_path)

    assert "default-src 'none'" in html
    assert not re.search(r'\bsrc=|url\((?!#)|href="(?!#)|@import', html)


def test_ten_thousand_findings_of_huge_texts_stay_a_small_page(tmp_path: Path) -> None:
    huge = "x" * 1_000
    findings = tuple(
        make_finding(line, code=f"{line}{huge}", path=huge, message=huge, origin=huge) for line in range(10_000)
    )
    report = make_refused(
        findings=findings,
        counts_by_code={finding.code: 1 for finding in findings},
        extra_keys={f"{index}{huge}": 1 for index in range(1_000)},
        turns={str(turns): 1 for turns in range(1, 1_000)},
        source=huge,
    )

    html = html_of(report, tmp_path)

    assert len(html) < MAX_PAGE_BYTES
    assert "And 9940 more kinds" in html


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = make_refused(row_bytes={"512": 400, "1024": 600})

    write_validation_page(report, tmp_path / "a.html")
    write_validation_page(report, tmp_path / "b.html")

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@given(st.dictionaries(st.integers(0, 62).map(lambda exponent: str(1 << exponent)) | st.just("0"), st.integers(0, 9)))
@settings(max_examples=10, deadline=None)
def test_any_distribution_can_be_drawn(counts: dict[str, int]) -> None:
    if counts:
        assert draw_histogram(counts, title="a", unit="bytes", mark=(1_500, "limit")).startswith("<svg")
        assert draw_numbers(counts, title="a", unit="turns").endswith("</svg>\n")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0%"), (9, 9, "100%"), (1, 3, "33.3%"), (1, 10**6, "under 0.1%"), (10**6 - 1, 10**6, "over 99.9%")],
)
def test_a_share_is_never_rounded_to_none_or_all(part: int, whole: int, text: str) -> None:
    assert format_share(part, whole) == text
