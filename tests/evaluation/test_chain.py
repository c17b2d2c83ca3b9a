"""Three versions of a real model, each trained from the one before: small losses that add up."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from osft.cli import evaluate
from osft.errors import MissingPathError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting, measure_baseline
from osft.evaluation.measurement import TaskMeasurement
from osft.evaluation.report.forgetting_report import ForgettingReport

QUESTIONS = tuple(f"{number:03d}{chr(97 + number % 26)}" for number in range(200))
CHOICES = tuple("abcdefghijklmnop")
DAMAGE = {"v0000": 0.0, "v0001": 0.001, "v0002": 0.0025, "v0003": 0.005}
"""How far each version's weights are from the origin's: of 200 answers 5, 12 and 21 are others than the origin's."""


@dataclass(kw_only=True)
class Chain:
    """The models, and what each run left."""

    models: Mapping[str, Path]
    tasks: Path
    gold: Sequence[int]
    rows: Path
    """Held-out rows."""

    cache: Path
    folder: Path
    reports: dict[str, ForgettingReport] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)

    def measurements(self, version: str) -> Path:
        """As a promotion keeps them, beside the weights."""
        return self.models[version] / "measurements"

    def promote(self, version: str) -> None:
        """Keep what the run that made ``version`` measured."""
        measured = self.folder / version / "measurements"
        shutil.copytree(measured / "tuned", self.measurements(version))
        if version == "v0001":
            shutil.copytree(measured / "base", self.measurements("v0000"))

    def config(self, version: str, **changes: Any) -> EvaluationConfig:
        """Return the configuration of the run that makes ``version``."""
        before = [one for one in self.models if one < version]
        values: dict[str, Any] = {
            "tasks": ("answers",),
            "include_path": self.tasks,
            "batch_size": 64,
            "max_forgetting": 0.1,
            "max_cumulative_forgetting": 0.12,
        }
        if len(before) > 1:
            values |= {
                "base_version": before[-1],
                "ancestor_measurements": {one: self.measurements(one) for one in before},
                "origin": str(self.models["v0000"]),
            }
        return EvaluationConfig(**values | changes)

    def evaluate(self, version: str, output: Path, config: EvaluationConfig) -> ForgettingReport:
        base = max(one for one in self.models if one < version)
        return evaluate_forgetting(str(self.models[base]), str(self.models[version]), config, output, cache=self.cache)


class Messages(logging.Handler):
    """Log lines; ``caplog`` is there for functions only."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="session")
def messages() -> Iterator[Messages]:
    handler, logger = Messages(), logging.getLogger("osft.evaluation")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@torch.no_grad()
def answers(oracle: Any) -> list[int]:
    """Return the choice of the oracle's model for each question; all are of one length."""
    logits = oracle.model(torch.tensor([oracle.prompt_ids(question) for question in QUESTIONS])).logits[:, -1]
    return [int(one) for one in logits[:, [oracle.tokenizer.encode(choice)[0] for choice in CHOICES]].argmax(dim=-1)]


def write_answers_task(kit: Any, folder: Path, name: str, gold: Sequence[int]) -> None:
    """Write a task of as many questions as there are right answers."""
    kit.write_task(
        folder,
        name,
        [{"question": question, "gold": one} for question, one in zip(QUESTIONS, gold, strict=False)],
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice=list(CHOICES),
        doc_to_target="gold",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


@pytest.fixture(scope="session")
def chain(kit: Any, base_oracle: Any, messages: Messages, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    gold = answers(base_oracle)
    write_answers_task(kit, folder / "tasks", "answers", gold)
    rows = [ids + base_oracle.greedy(ids, 3) for ids in map(base_oracle.prompt_ids, QUESTIONS[:12])]
    labelled = [([*row], [-100] * (len(row) - 3) + row[-3:]) for row in rows]
    kit.write_holdout(folder / "rows" / "holdout.parquet", labelled)
    one = Chain(
        models={version: kit.save_model(folder / "models" / version, damage=far) for version, far in DAMAGE.items()},
        tasks=folder / "tasks",
        gold=gold,
        rows=folder / "rows",
        cache=folder / "cache",
        folder=folder,
    )
    for version in ("v0001", "v0002", "v0003"):
        messages.lines.clear()
        one.reports[version] = one.evaluate(version, folder / version, one.config(version))
        one.messages[version] = list(messages.lines)
        one.promote(version)
    return one


def test_small_losses_pass_one_by_one_and_are_refused_once_they_have_added_up(chain: Chain) -> None:
    first, second, third = chain.reports.values()

    assert [report.forgetting_upper <= 0.1 for report in (first, second, third)] == [True, True, True]
    assert [report.passed for report in (first, second, third)] == [True, True, False]
    assert first.cumulative_forgetting is None
    assert second.cumulative_forgetting is not None
    assert third.cumulative_forgetting is not None
    assert second.cumulative_forgetting < third.cumulative_forgetting
    refusal = third.reasons[1]
    assert refusal.startswith("Forgetting since each task's best version is ")
    assert "since the origin)" in refusal


def test_first_run_of_a_chain_is_judged_as_ever(chain: Chain) -> None:
    report = chain.reports["v0001"]

    assert (report.best_tasks, report.origin_tasks, report.origin_forgetting) == ((), (), None)
    assert not any("best version" in reason for reason in report.reasons)


def test_every_version_that_was_asked_is_a_candidate_for_the_best(chain: Chain) -> None:
    by_task = {best.comparison.task: best for best in chain.reports["v0003"].best_tasks}

    assert by_task["answers"].compared_with == ("origin", "v0001", "v0002")
    assert (by_task["answers"].version, by_task["answers"].comparison.base) == ("origin", 1.0)


def test_loss_since_the_origin_is_the_loss_of_the_whole_chain(chain: Chain) -> None:
    third = chain.reports["v0003"]

    (since_origin,) = third.origin_tasks

    assert (since_origin.task, since_origin.base, since_origin.lost) == (
        "answers",
        1.0,
        round(-since_origin.delta * 200),
    )
    assert third.origin_forgetting == pytest.approx(-since_origin.delta)
    assert since_origin.ci_low is not None
    assert since_origin.ci_low < since_origin.delta


def test_rows_that_a_version_held_out_are_a_task_of_later_runs_that_its_model_is_not_asked_again(
    chain: Chain, messages: Messages, tmp_path: Path
) -> None:
    first = chain.evaluate("v0001", tmp_path / "first", chain.config("v0001", holdout=chain.rows))
    kept = tmp_path / "kept" / "holdout_v0001.parquet"
    kept.parent.mkdir()
    (tmp_path / "first" / "measurements" / "tuned" / "holdout.parquet").rename(kept)
    messages.lines.clear()

    second = chain.evaluate(
        "v0003",
        tmp_path / "second",
        chain.config(
            "v0003",
            earlier_holdouts={"holdout_v0001": chain.rows},
            ancestor_measurements={"v0001": kept.parent, "v0002": tmp_path},
        ),
    )
    baseline = measure_baseline(
        str(chain.models["v0001"]),
        chain.config("v0002", earlier_holdouts={"holdout_v0001": chain.rows}),
        tmp_path / "baseline",
        cache=chain.cache,
    )

    own = next(task for task in first.tasks if task.task == "holdout")
    best = next(best for best in second.best_tasks if best.comparison.task == "holdout_v0001")
    assert (own.kind, best.comparison.kind, best.compared_with) == ("target", "retention", ("v0001", "v0002"))
    assert baseline.scores["holdout_v0001"] == own.tuned
    assert "base: task holdout_v0001 (2 of 2) is known" in messages.lines
    # Twelve rows: shown, and in no mean.
    assert [(pool.tasks, pool.comparison.n, pool.counts) for pool in (*second.pools, *second.best_pools)] == [
        (("holdout_v0001",), 12, False)
    ] * 2
    assert "too few to count, which takes 60." in " ".join(second.reasons)
    assert first.pools == ()


def test_no_model_of_a_chain_is_asked_twice(chain: Chain) -> None:
    assert [line for line in chain.messages["v0003"] if "loading" in line] == [
        "loading task answers",
        f"tuned: loading {chain.models['v0003']}",
    ]


def test_evaluation_leaves_the_answers_of_both_models(chain: Chain) -> None:
    folder = chain.folder / "v0001" / "measurements"

    tuned = TaskMeasurement.load(folder / "tuned" / "answers.parquet")

    assert (tuned.task, tuned.value, len(tuned.documents)) == ("answers", chain.reports["v0001"].tasks[0].tuned, 200)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")} == {
        "base/answers.parquet",
        "tuned/answers.parquet",
    }


def test_report_is_read_back_as_it_was_written(chain: Chain) -> None:
    file = chain.folder / "v0003" / "forgetting.json"

    content = json.loads(file.read_text())

    third = chain.reports["v0003"]
    loaded = ForgettingReport.load(file)
    assert (loaded.best_tasks, loaded.origin_tasks, loaded.reasons) == (
        third.best_tasks,
        third.origin_tasks,
        third.reasons,
    )
    assert content["cumulative_forgetting"] == third.cumulative_forgetting
    assert {"version", "compared_with", "comparison"} == set(content["best_tasks"][0])


def test_origin_is_loaded_only_for_what_it_was_not_asked_before(
    kit: Any, chain: Chain, messages: Messages, tmp_path: Path
) -> None:
    write_answers_task(kit, tmp_path / "tasks", "answers", chain.gold)
    write_answers_task(kit, tmp_path / "tasks", "later", chain.gold[:20])
    config = chain.config("v0003", tasks=("answers", "later"), include_path=tmp_path / "tasks")
    messages.lines.clear()

    report = chain.evaluate("v0003", tmp_path / "evaluation", config)

    by_task = {best.comparison.task: best.compared_with for best in report.best_tasks}
    assert by_task["answers"] == ("origin", "v0001", "v0002")
    assert by_task["later"] == ("origin", "v0002")
    assert [line for line in messages.lines if line.startswith("origin: task")] == ["origin: task later (1 of 1)"]


def test_task_that_was_edited_since_is_left_out_and_the_report_says_so(kit: Any, chain: Chain, tmp_path: Path) -> None:
    edited = [(chain.gold[0] + 1) % len(CHOICES), *chain.gold[1:]]
    write_answers_task(kit, tmp_path / "tasks", "answers", edited)
    config = chain.config("v0003", include_path=tmp_path / "tasks", origin=None)

    report = chain.evaluate("v0003", tmp_path / "evaluation", config)

    compared = {best.comparison.task: best.compared_with for best in report.best_tasks}
    assert compared["answers"] == ("v0002",)
    assert report.left_out_references == tuple(
        f"answers is not compared with {version}: document 0 of answers is another one now, or is asked otherwise."
        for version in ("origin", "v0001")
    )
    assert "is not compared with v0001" in (tmp_path / "evaluation" / "report.html").read_text()


def test_origin_that_cannot_be_asked_the_same_prompts_is_left_out(kit: Any, chain: Chain, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(chain.models["v0000"], tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    write_answers_task(kit, tmp_path / "tasks", "later", chain.gold[:5])
    config = chain.config("v0003", tasks=("later",), include_path=tmp_path / "tasks", origin=str(plain))

    report = chain.evaluate("v0003", tmp_path / "evaluation", config)

    assert report.left_out_references == (
        f"later is not compared with the origin: '{plain}' has no chat template, and the base has one.",
    )
    assert report.origin_forgetting is None


def test_command_takes_the_folders_of_versions(chain: Chain, tmp_path: Path) -> None:
    folders = [chain.models[version] for version in ("v0000", "v0001", "v0002")]

    evaluate(
        base=str(folders[-1]),
        tuned=str(chain.models["v0003"]),
        tasks="answers",
        output=tmp_path,
        include_path=chain.tasks,
        ancestor=folders,
        batch_size="64",
        max_forgetting=0.1,
        cache=chain.cache,
    )

    report, expected = ForgettingReport.load(tmp_path / "forgetting.json"), chain.reports["v0003"]
    assert (report.best_tasks, report.origin_tasks) == (expected.best_tasks, expected.origin_tasks)
    assert not report.passed


def test_command_refuses_a_version_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"--ancestor '.*v0009' is no folder"):
        evaluate(base="a", tuned="b", tasks="c", output=tmp_path, ancestor=[tmp_path / "v0009"])


def test_origin_that_is_gone_is_found_before_the_training(kit: Any, chain: Chain, tmp_path: Path) -> None:
    write_answers_task(kit, tmp_path / "tasks", "new", chain.gold[:5])
    config = replace(
        chain.config("v0003", origin=str(tmp_path / "gone")), tasks=("new",), include_path=tmp_path / "tasks"
    )

    with pytest.raises(MissingPathError, match=r"model '.*gone': the folder does not exist"):
        measure_baseline(str(chain.models["v0002"]), config, tmp_path / "baseline", cache=chain.cache)


def test_origin_that_is_gone_is_not_missed_where_all_is_known_of_it(chain: Chain, tmp_path: Path) -> None:
    config = chain.config("v0003", origin=str(tmp_path / "gone"))

    report = chain.evaluate("v0003", tmp_path / "evaluation", config)

    assert report.cumulative_forgetting == chain.reports["v0003"].cumulative_forgetting
