from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.holdout import HoldoutRow, HoldoutTask
from osft.evaluation.holdout.task import SHORT_ANSWER_TOKENS
from osft.evaluation.metric_choice import choose_metric, is_higher_better
from osft.evaluation.report.forgetting_report import ForgettingReport

KINDS = ("short", "long", "late", "plain")
END = 2
"""``<|im_end|>`` of the tests' tokenizer."""


@pytest.fixture(scope="module")
def tokenizer(kit: Any) -> Any:
    return kit.byte_tokenizer()


def make_row(kind: str, number: int) -> HoldoutRow:
    """A row of short turns, of long ones, of a long and then a short one, or of plain text."""
    turn = SHORT_ANSWER_TOKENS + (kind == "long")
    turns = {
        "short": ((1, 1 + turn), (turn + 3, 2 * turn + 3)),
        "long": ((1, 1 + turn), (turn + 3, 2 * turn + 3)),
        "late": ((1, 2 + turn), (turn + 3, turn + 5)),
        "plain": ((1, 4),),
    }[kind]
    ids = [5 + number % 200] * (turns[-1][1] - 1) + [END]
    return HoldoutRow(row=number, input_ids=np.array(ids, dtype=np.int32), turns=turns, is_plain_text=kind == "plain")


def scores_of(task: HoldoutTask, likelihood: Callable[[], tuple[float, bool]]) -> list[dict[str, Any]]:
    """Return every document's scores, for a model that answers what ``likelihood`` returns and writes "x"."""
    scores = []
    for document in task.test_docs():
        requests = task.construct_requests(document, "", metadata=("holdout", 0, 1))
        results: list[Any] = [likelihood() for _ in requests]
        if document["is_written"]:
            results[-1] = "x"
        scores.append(task.process_results(document, results))
    return scores


def counting(task: HoldoutTask, scores: dict[str, Any]) -> str:
    metrics = [(name, "none") for name in scores]
    return choose_metric("holdout", metrics, declared=task.higher_is_better())[0]


@pytest.mark.parametrize(
    ("kinds", "metric"),
    [
        ("short", "acc"),
        ("long", "perplexity"),
        ("late", "perplexity"),
        ("plain", "perplexity"),
        ("short long", "acc"),
        ("short plain", "acc"),
        ("short long plain", "perplexity"),
        ("short short long plain", "acc"),
        ("short late late", "perplexity"),
    ],
)
def test_whole_answers_count_where_half_of_the_rows_are_short(tokenizer: Any, kinds: str, metric: str) -> None:
    task = HoldoutTask([make_row(kind, number) for number, kind in enumerate(kinds.split())], tokenizer)

    scores = scores_of(task, lambda: (-1.0, False))

    assert {counting(task, one) for one in scores} == {metric}
    assert is_higher_better("holdout", metric, task.higher_is_better()) == (metric == "acc")
    assert {"acc" in one for one in scores} == {metric == "acc"}


@settings(max_examples=50, deadline=None)
@given(data=st.data(), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
def test_no_answer_of_a_model_decides_what_counts(tokenizer: Any, data: st.DataObject, kinds: list[str]) -> None:
    task = HoldoutTask([make_row(kind, number) for number, kind in enumerate(kinds)], tokenizer)
    responses = st.tuples(st.floats(-1e3, 0.0), st.booleans())

    one, other = scores_of(task, lambda: data.draw(responses)), scores_of(task, lambda: (-1.0, True))

    assert [list(scores) for scores in one] == [list(scores) for scores in other]
    assert {counting(task, scores) for scores in one} == {counting(task, other[0])}


def test_equal_rows_are_counted_each(tokenizer: Any) -> None:
    task = HoldoutTask([make_row("short", 1), *[make_row("plain", 2)] * 2], tokenizer)

    scores = scores_of(task, lambda: (-1.0, True))

    assert all("acc" not in one for one in scores)


def evaluate(kit: Any, folder: Path, base: Path, tuned: Path, oracle: Any, labelled: list[Any]) -> ForgettingReport:
    kit.write_holdout(folder / "holdout.parquet", labelled)
    kit.write_letters_task(folder / "tasks", "letters", oracle)
    config = EvaluationConfig(
        tasks=("letters",),
        include_path=folder / "tasks",
        holdout=folder,
        batch_size=4,
        max_forgetting=0.5,
        min_target_gain=0.5,
    )
    return evaluate_forgetting(str(base), str(tuned), config, folder / "evaluation")


@pytest.fixture(scope="module")
def learnt(
    kit: Any, tmp_path_factory: pytest.TempPathFactory, base_model: Path, damaged_model: Path, base_oracle: Any
) -> tuple[ForgettingReport, list[tuple[list[int], int]]]:
    """The damaged model becomes the whole one; the answers are what the whole one says, but for the last token."""
    prompts = [base_oracle.prompt_ids(question) for question in kit.questions[:6]]
    lengths = [SHORT_ANSWER_TOKENS + 2 * number for number in range(6)]
    rows = [
        (ids + base_oracle.greedy(ids, length) + [7], len(ids)) for ids, length in zip(prompts, lengths, strict=True)
    ]
    labelled = [(ids, [-100] * start + ids[start:]) for ids, start in rows]
    folder = tmp_path_factory.mktemp("learnt")
    return evaluate(kit, folder, damaged_model, base_model, base_oracle, labelled), rows


def holdout_of(report: ForgettingReport) -> TaskComparison:
    return next(task for task in report.tasks if task.task == "holdout")


def test_long_answers_are_compared_by_their_perplexity_and_with_an_interval(
    learnt: Any, base_oracle: Any, damaged_oracle: Any
) -> None:
    report, rows = learnt
    num_tokens = sum(len(ids) - start for ids, start in rows)

    holdout = holdout_of(report)

    before, after = (
        np.exp(-sum(oracle.loglikelihood(ids, start) for ids, start in rows) / num_tokens)
        for oracle in (damaged_oracle, base_oracle)
    )
    assert (holdout.kind, holdout.metric, holdout.higher_is_better) == ("target", "perplexity", False)
    assert (holdout.base, holdout.tuned) == (pytest.approx(before, rel=1e-4), pytest.approx(after, rel=1e-4))
    assert holdout.ci_low is not None
    assert holdout.ci_high is not None
    assert 0 < holdout.ci_low < holdout.delta < holdout.ci_high
    assert [one.metric for one in holdout.secondary] == ["token_loglikelihood"]


def test_gain_on_long_answers_is_the_share_by_which_perplexity_fell(learnt: Any) -> None:
    report, _ = learnt
    holdout = holdout_of(report)

    assert report.target_gain == pytest.approx((holdout.base - holdout.tuned) / holdout.base)
    assert report.target_gain > 0.5
    assert report.passed
