"""The page, the picture, the summary and the metrics of a sweep."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from osft.evaluation.report.points import MINUS
from osft.sweep.chart import Reach, axis_reach, draw_trade_off
from osft.sweep.choice import RatioChoice, RatioOutcome, choose_ratio
from osft.sweep.gains import MeanChange
from osft.sweep.markdown import write_markdown
from osft.sweep.metrics import choice_metrics
from osft.sweep.page import write_sweep_page
from osft.sweep.table import ratio_table
from tests.sweep.sweeps import measured_of, right


def outcome(ratio: float, *, forgetting: float = 0.01, gain: float | None = 0.5, **fields: object) -> RatioOutcome:
    change = None if gain is None else MeanChange(value=gain, low=gain - 0.05, high=gain + 0.05, is_clear=True)
    values = {
        "run_id": f"sweep-ratio-{ratio}", "passed": True, "reasons": ("It | is <b>kept</b>.",), "gain": change,
        "behind": MeanChange(value=0.02, low=-0.01, high=0.05), "forgetting": forgetting,
        "forgetting_upper": forgetting + 0.02, "cumulative_forgetting": None, "cumulative_forgetting_upper": None,
        "train_seconds": 3725.4,
    }  # fmt: skip
    return RatioOutcome(ratio=ratio, **values | fields)


def choice_of(*outcomes: RatioOutcome, **fields: object) -> RatioChoice:
    first = outcomes[0]
    values = {"run_id": first.run_id, "passed": first.passed, "why": "Because <i>of</i> it.", "max_forgetting": 0.05}
    return RatioChoice(ratio=first.ratio, outcomes=outcomes, **values | fields)


def test_the_best_of_each_column_is_marked() -> None:
    table = ratio_table(choice_of(outcome(0.1, gain=0.2), outcome(0.5, forgetting=0.03)))

    best = [[column for column, cell in zip(table.columns, row, strict=True) if cell.is_best] for row in table.rows]
    assert best == [["Forgetting", "At most"], ["Gain"]]
    assert [cell.text for cell in table.rows[0]] == [
        "0.1", "+20.0 (+15.0 to +25.0)", f"2.0 ({MINUS}1.0 to +5.0)", "1.0", "3.0", "1:02:05", "passed",
    ]  # fmt: skip


def test_what_no_ratio_has_is_no_column() -> None:
    bare = {"gain": None, "behind": None, "forgetting_upper": None}
    chain = {"cumulative_forgetting": 0.02, "cumulative_forgetting_upper": 0.04}

    columns = [ratio_table(choice_of(outcome(0.1, **fields))).columns for fields in (bare, chain)]

    assert columns[0] == ("Ratio", "Forgetting", "Training (h:mm:ss)", "Gate")
    assert columns[1][5:7] == ("Since the best versions", "At most, since then")


def test_the_metrics_are_those_of_the_chosen_ratio_and_of_each() -> None:
    metrics = choice_metrics(choice_of(outcome(0.1), outcome(0.5, gain=None, passed=False, forgetting_upper=None)))

    assert metrics == pytest.approx(
        {
            "ratio": 0.1, "passed": 1.0, "target_gain": 0.5, "forgetting": 0.01, "forgetting_upper": 0.03,
            "ratio_0.1.passed": 1.0, "ratio_0.1.target_gain": 0.5, "ratio_0.1.forgetting": 0.01,
            "ratio_0.1.forgetting_upper": 0.03, "ratio_0.5.passed": 0.0, "ratio_0.5.forgetting": 0.01,
        }
    )  # fmt: skip


def test_the_summary_has_the_sentence_the_table_and_the_reasons(tmp_path: Path) -> None:
    write_markdown(choice_of(outcome(0.1), outcome(0.5, gain=0.6)), tmp_path / "report.md")

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("## Passed: ratio 0.1\n\n**Because \\<i\\>of\\</i\\> it.**\n")
    assert "| 0.5 | **+60.0 (+55.0 to +65.0)** |" in text
    assert "### Ratio 0.5\n\n- It \\| is \\<b\\>kept\\</b\\>.\n" in text
    assert "chance had several tries" in text


def test_the_picture_tells_who_passed_and_who_was_chosen() -> None:
    svg = draw_trade_off(choice_of(outcome(0.1), outcome(0.5, gain=0.6), outcome(1.0, gain=0.7, passed=False)))

    assert svg is not None
    assert 'aria-label="Gain over forgetting at the ratios 0.1, 0.5, 1.0"' in svg
    assert all(f">{ratio}</text>" in svg for ratio in ("0.1", "0.5", "1.0", "limit"))
    # Two marks are full, one is hollow, and one has a ring.
    assert (svg.count("fill: #1d7a5f; stroke: #1d7a5f"), svg.count("fill: #fbfaf8; stroke: #b5472b")) == (2, 1)


def test_a_model_that_lost_everything_does_not_press_the_others_together() -> None:
    others = [outcome(ratio, forgetting=ratio / 50, gain=ratio) for ratio in (0.1, 0.25, 0.5)]

    svg = draw_trade_off(choice_of(*others, outcome(1.0, forgetting=0.8, gain=-3.0)))

    assert svg is not None
    assert f">1.0, forgot 80.0, gained {MINUS}300.0</text>" in svg
    ticks = [int(text) for text in re.findall(r">(\d+)</text>", svg)]
    assert max(ticks) <= 60
    assert f">{MINUS}" not in svg


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1, 2, 3], 1, 3),
        ([1, 2, 3, 90], 1, 3),
        ([-50, 1, 2, 3, 90], 1, 3),
        ([0, 0, 0, 90], 0, 1),
        ([1, 90], 1, 90),
        ([1, 2, 90, 91], 1, 91),
        ([5], 5, 6),
    ],
)
def test_an_axis_shows_what_is_not_far_from_the_others(values: list[float], low: float, high: float) -> None:
    reach = axis_reach([Reach(value=value, low=value, high=value) for value in values])

    assert (reach.low, reach.high) == (low, high)


def test_a_limit_that_is_far_away_is_not_drawn() -> None:
    svg = draw_trade_off(choice_of(outcome(0.1), outcome(0.5), max_forgetting=1.0))

    assert svg is not None
    assert ">limit</text>" not in svg


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The page of a whole sweep, and the same again."""
    tuned: Mapping[float, Mapping[str, list[float]]] = {
        0.1: {"kept": right(200), "new<script>": right(60)},
        0.5: {"kept": right(150), "new<script>": right(120)},
    }
    folder = tmp_path_factory.mktemp("sweep")
    measured = measured_of(folder, tuned)
    for name in ("1.html", "2.html"):
        write_sweep_page(choose_ratio(measured), measured, folder / name)
    first, second = ((folder / name).read_text(encoding="utf-8") for name in ("1.html", "2.html"))
    return first, second


def test_the_page_has_the_choice_the_picture_every_ratio_and_every_task(page_of: tuple[str, str]) -> None:
    page, _ = page_of

    assert "Unfreeze ratio 0.1" in page
    assert "its model is the only one that passed" in page
    assert page.count("<svg") == 1
    assert page.count('<tr class="chosen">') == 1
    assert '<span class="best">+60.0</span> <span class="soft">(+' in page
    assert page.count('<tr class="group">') == 2
    assert "Forgetting is 25.0 points" in page


def test_the_page_loads_nothing_and_is_the_same_each_time(page_of: tuple[str, str]) -> None:
    first, second = page_of

    assert first == second
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)|@import', first)
    assert "default-src 'none'" in first


def test_names_cannot_become_elements(page_of: tuple[str, str]) -> None:
    page, _ = page_of

    assert "<script" not in page
    assert "target.new&lt;script&gt;" in page


def test_without_a_target_task_the_page_has_no_picture(tmp_path: Path) -> None:
    measured = measured_of(tmp_path, {0.1: {"kept": right(199)}, 0.5: {"kept": right(198)}})

    write_sweep_page(choose_ratio(measured), measured, tmp_path / "page.html")

    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "not measured" in page
