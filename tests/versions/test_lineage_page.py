import re
from pathlib import Path

import pytest

from osft.evaluation.report.formats import format_number
from osft.versions.chain_summary import summarize_chain
from osft.versions.lineage_page import write_lineage_page
from osft.versions.score_text import COLD, WARM
from osft.workspace import Workspace
from tests.versions.chains import five_domains, make_lineage, make_score, write_chain, write_memory


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def page_of(workspace: Workspace, target: Path) -> str:
    write_lineage_page(summarize_chain(workspace, "demo"), target)
    return target.read_text(encoding="utf-8")


def test_the_page_has_the_matrix_the_lines_and_the_versions(workspace: Workspace, tmp_path: Path) -> None:
    write_chain(workspace, five_domains(versions=3))

    page = page_of(workspace, tmp_path / "page.html")

    assert len(re.findall(r'<td class="learnt"[^>]*>100.0%</td>', page)) == 3
    assert page.count('<td class="none">') == 3
    assert page.count("<svg") == 5
    assert "country_code: v0000 100.0%, v0001 98.8%, v0002 97.6%, v0003 96.4%" in page
    assert "s3://bucket/domains/3.jsonl" in page
    assert page.count("≤ 3.1<br>3.9 vs best<br>2.4 vs origin") == 2


def test_the_page_loads_nothing_and_is_the_same_each_time(workspace: Workspace, tmp_path: Path) -> None:
    write_chain(workspace, five_domains(versions=2))

    first, second = page_of(workspace, tmp_path / "1.html"), page_of(workspace, tmp_path / "2.html")

    assert first == second
    assert "<script" not in first
    assert not re.search(r"(src|href)=|url\(|https?://", first)
    assert "default-src 'none'" in first


def test_names_cannot_become_elements(workspace: Workspace, tmp_path: Path) -> None:
    write_chain(workspace, [make_lineage(1, [make_score("<b onclick=x>&", 0.5)])])

    page = page_of(workspace, tmp_path / "page.html")

    assert "<b onclick" not in page
    assert "&lt;b onclick=x&gt;&amp;" in page


def test_a_perplexity_is_drawn_on_an_axis_of_its_own(workspace: Workspace, tmp_path: Path) -> None:
    fields = {"metric": "perplexity", "higher_is_better": False}
    scores = [[make_score("prose", value, **fields)] for value in (10.0, 12.5)]
    write_chain(workspace, [make_lineage(number, score) for number, score in enumerate(scores, start=1)])

    page = page_of(workspace, tmp_path / "page.html")

    assert "12.5 perplexity, lower is better" in page
    # Up is better: the lower of the two lies higher.
    assert '<circle cx="44.0" cy="12.0"' in page
    assert '<circle cx="250.0" cy="88.0"' in page


def test_what_was_scored_before_learning_does_not_press_the_rest_together(workspace: Workspace, tmp_path: Path) -> None:
    fields = {"metric": "perplexity", "higher_is_better": False}
    first = make_lineage(1, [make_score("holdout_v0001", 4.0, before=1000.0, kind="target", **fields)])
    second = make_lineage(2, [make_score("holdout_v0001", 5.0, before=4.0, **fields)])
    write_chain(workspace, [first, second])

    page = page_of(workspace, tmp_path / "page.html")

    assert 'points="44.0,88.0 147.0,12.0"' in page
    assert 'points="147.0,12.0 250.0,88.0"' in page


def test_scores_below_zero_are_coloured_by_which_is_better(workspace: Workspace, tmp_path: Path) -> None:
    values = (-3.2, -9.6, -6.4)
    chain = [
        make_lineage(number, [make_score("text", value, metric="loglikelihood")])
        for number, value in enumerate(values, start=1)
    ]
    write_chain(workspace, chain)

    page = page_of(workspace, tmp_path / "page.html")

    halfway = tuple(round((cold + warm) / 2) for cold, warm in zip(COLD, WARM, strict=True))
    for color, value in zip((WARM, COLD, halfway), values, strict=True):
        red, green, blue = color
        assert f'background: rgb({red}, {green}, {blue})">{format_number(value)}<' in page


def test_the_page_shows_the_room_in_the_memory(workspace: Workspace, tmp_path: Path) -> None:
    write_chain(workspace, five_domains(versions=1))
    write_memory(workspace, "v0001", {("layers.0.q", "layers.0.k"): (3,)})

    page = page_of(workspace, tmp_path / "page.html")

    assert "layers.0.q</bdi>" in page
    assert "and 1 more" in page
    assert "room for about 1 more task" in page
    assert "50.0%" in page
