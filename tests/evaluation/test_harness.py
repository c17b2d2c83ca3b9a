import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from osft.errors import ConfigError, EvaluationError, MissingPathError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.harness import (
    DocumentMeasurement,
    TaskMeasurement,
    check_same_questions,
    choose_metric,
    compare,
    measure,
)
from osft.evaluation.model import find_model
from osft.evaluation.report import ForgettingReport
from osft.evaluation.tasks import load_tasks, resolve_data_files


@dataclass
class Run:
    """One evaluation of every kind of task, shared by the tests that look at its outcome."""

    report: ForgettingReport
    output: Path
    tasks: Path
    holdout_rows: list[list[int]]

    def task(self, name: str) -> TaskComparison:
        return next(task for task in self.report.tasks if task.task == name)

    def samples(self, task: str) -> list[dict]:
        lines = (self.output / "samples.jsonl").read_bytes().splitlines()
        return [sample for sample in map(orjson.loads, lines) if sample["task"] == task]


def write_tasks(kit: Any, folder: Path, oracle: Any) -> Path:
    kit.write_letters_task(folder / "letters", "letters", oracle, num_wrong=4)
    kit.write_letters_task(folder, "letters_left", oracle)
    kit.write_letters_task(folder, "letters_right", oracle, num_wrong=24)
    kit.write_group(folder, "letters_both", ["letters_left", "letters_right"])
    kit.write_copy_task(folder, "copies", oracle)
    kit.write_prose_task(folder, "prose")
    return folder


@pytest.fixture(scope="session")
def run(
    kit: Any, tmp_path_factory: pytest.TempPathFactory, base_model: Path, damaged_model: Path, base_oracle: Any
) -> Run:
    folder = tmp_path_factory.mktemp("run")
    rows = [ids + base_oracle.greedy(ids, 4) for ids in map(base_oracle.prompt_ids, kit.questions[:5])]
    labelled = [([*row], [-100] * (len(row) - 4) + row[-4:]) for row in rows]
    kit.write_holdout(folder / "holdout.parquet", labelled)
    tasks = write_tasks(kit, folder / "tasks", base_oracle)
    config = EvaluationConfig(
        base=str(base_model),
        tuned=str(damaged_model),
        tasks=("letters", "letters_both", "copies", "prose"),
        include_path=tasks,
        holdout=folder,
        batch_size=4,
    )
    report = evaluate_forgetting(config, folder / "evaluation")
    return Run(report=report, output=folder / "evaluation", tasks=tasks, holdout_rows=rows)


def test_multiple_choice_is_scored_as_the_models_answer(
    kit: Any, run: Run, base_oracle: Any, damaged_oracle: Any
) -> None:
    base = [base_oracle.choice(question) for question in kit.questions]
    damaged = [damaged_oracle.choice(question) for question in kit.questions]
    still_right = sum(one == other for one, other in zip(base[4:], damaged[4:], strict=True))

    letters = run.task("letters")

    assert letters.base == pytest.approx(20 / 24)
    assert letters.lost == 20 - still_right
    assert letters.n == 24
    assert [sample["base_answer"] for sample in run.samples("letters")] == [chr(97 + choice) for choice in base]
    assert [sample["tuned_answer"] for sample in run.samples("letters")] == [chr(97 + choice) for choice in damaged]


def test_generation_is_scored_by_exact_match(kit: Any, run: Run, damaged_oracle: Any) -> None:
    generated = [damaged_oracle.greedy_text(question, 3) for question in kit.questions[:8]]

    copies, samples = run.task("copies"), run.samples("copies")

    assert (copies.metric, copies.base) == ("exact_match", 1.0)
    assert [sample["tuned_answer"] for sample in samples] == generated
    assert copies.tuned == np.mean([sample["gold"] == text for sample, text in zip(samples, generated, strict=True)])


def test_group_is_one_task_over_all_its_documents(run: Run) -> None:
    group = run.task("letters_both")

    assert group.n == 48
    assert group.base == pytest.approx(0.5)


def test_corpus_score_has_no_interval_and_worse_is_negative(run: Run) -> None:
    prose = run.task("prose")

    assert prose.metric == "word_perplexity"
    assert prose.delta == pytest.approx(prose.base - prose.tuned)
    assert prose.ci_low is None
    assert [one.metric for one in prose.secondary] == ["bits_per_byte"]


def test_holdout_is_scored_on_the_very_tokens(run: Run, base_oracle: Any, damaged_oracle: Any) -> None:
    likelihoods = [damaged_oracle.loglikelihood(row, len(row) - 4) / 4 for row in run.holdout_rows]
    right = [damaged_oracle.answers(row, len(row) - 4) for row in run.holdout_rows]

    holdout = run.task("holdout")

    assert (holdout.kind, holdout.metric, holdout.base, holdout.tuned) == ("target", "acc", 1.0, np.mean(right))
    secondary = {one.metric: one.tuned for one in holdout.secondary}
    assert secondary["token_loglikelihood"] == pytest.approx(np.mean(likelihoods), rel=1e-4)
    assert secondary["perplexity"] == pytest.approx(np.exp(-np.mean(likelihoods)), rel=1e-4)


def test_files_hold_what_was_returned(run: Run) -> None:
    content = json.loads((run.output / "forgetting.json").read_text())

    assert ForgettingReport.load(run.output / "forgetting.json").tasks == run.report.tasks
    assert {"tasks", "forgetting", "target_gain", "passed", "reasons", "settings", "versions"} == set(content)
    assert {"task", "kind", "metric", "base", "tuned", "delta", "ci_low", "ci_high", "n"} <= set(content["tasks"][0])
    assert content["settings"]["chat_template_applied"] is True
    assert "should not replace the base" in (run.output / "report.html").read_text()
    assert {path.name for path in run.output.iterdir()} == {"forgetting.json", "report.html", "samples.jsonl"}


def test_damaged_model_does_not_pass(run: Run) -> None:
    assert run.report.forgetting > 0.05
    assert run.report.target_gain is not None
    assert run.report.target_gain < 0
    assert not run.report.passed


def test_same_model_forgets_nothing_and_passes(tmp_path: Path, run: Run, base_model: Path) -> None:
    config = EvaluationConfig(
        base=str(base_model),
        tuned=str(base_model),
        tasks=("letters", "copies"),
        include_path=run.tasks,
        limit=3,
        num_fewshot=1,
        apply_chat_template=False,
    )

    report = evaluate_forgetting(config, tmp_path)

    assert (report.forgetting, report.target_gain, report.passed) == (0.0, None, True)
    assert [task.n for task in report.tasks] == [3, 3]
    assert report.settings["shots"] == {"letters": 1, "copies": 1}
    assert "<|im_start|>" not in (tmp_path / "samples.jsonl").read_text()


def test_models_of_which_one_formats_conversations_are_not_compared(tmp_path: Path, run: Run, base_model: Path) -> None:
    plain = Path(shutil.copytree(base_model, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    config = EvaluationConfig(base=str(plain), tuned=str(base_model), tasks=("letters",), include_path=run.tasks)

    with pytest.raises(EvaluationError, match="only one of base .* and tuned .* has a chat template"):
        evaluate_forgetting(config, tmp_path / "evaluation")


def test_nan_weights_are_an_error_and_not_a_score(kit: Any, tmp_path: Path, run: Run) -> None:
    broken = kit.save_model(tmp_path / "broken", damage=float("nan"))
    config = EvaluationConfig(base=str(broken), tuned=str(broken), tasks=("letters",), include_path=run.tasks, limit=2)

    with pytest.raises(EvaluationError, match="the base model gave the log-likelihood nan"):
        measure(find_model(str(broken)), load_tasks(config), config, label="base", apply_chat_template=False)


def measurement(**fields: object) -> TaskMeasurement:
    values = {
        "task": "facts",
        "metric": "acc",
        "higher_is_better": True,
        "value": 0.5,
        "other_values": {},
        "documents": (),
        "version": "1",
        "num_fewshot": 0,
    }
    return TaskMeasurement(**values | fields)  # type: ignore[arg-type]


def document(doc_id: int, fingerprint: str = "same") -> DocumentMeasurement:
    return DocumentMeasurement(doc_id=doc_id, fingerprint=fingerprint, score=1.0, prompt="", gold="", answer="")


@pytest.mark.parametrize(
    ("tuned", "place"),
    [((document(0), document(1, "other")), "document 1"), ((document(0),), "document 1")],
)
def test_other_prompts_for_the_tuned_model_are_an_error(tuned: tuple, place: str) -> None:
    base = measurement(documents=(document(0), document(1)))

    with pytest.raises(EvaluationError, match=f"task 'facts', {place}: base and tuned model were asked different"):
        check_same_questions([base], [replace(base, documents=tuned)])


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        ([("acc", "none"), ("acc_norm", "none")], ("acc_norm", "none")),
        ([("exact_match", "strict-match"), ("exact_match", "flexible-extract")], ("exact_match", "strict-match")),
        ([("f1", "none"), ("exact_match", "none")], ("exact_match", "none")),
        ([("bleu", "none"), ("chrf", "none")], ("bleu", "none")),
    ],
)
def test_primary_metric_is_chosen_by_name(metrics: list[tuple[str, str]], chosen: tuple[str, str]) -> None:
    assert choose_metric("task", metrics) == chosen


def test_task_without_metric_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="task 'empty' has no metric"):
        choose_metric("empty", [])


def task_config(tasks: tuple[str, ...], include_path: Path | None) -> EvaluationConfig:
    return EvaluationConfig(base="base", tuned="tuned", tasks=tasks, include_path=include_path)


def test_unknown_task_is_answered_with_near_matches(run: Run) -> None:
    with pytest.raises(EvaluationError, match=r"task 'lettters' is not known .* Did you mean letters"):
        load_tasks(task_config(("lettters",), run.tasks))


def test_task_that_two_names_contain_is_an_error(run: Run) -> None:
    with pytest.raises(ConfigError, match="'letters_both' and 'letters_left' both contain 'letters_left'"):
        load_tasks(task_config(("letters_both", "letters_left"), run.tasks))


def test_task_whose_data_is_missing_is_named(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    kit.write_letters_task(tmp_path, "letters", base_oracle)
    (tmp_path / "letters.jsonl").unlink()

    with pytest.raises(EvaluationError, match="task 'letters' cannot be loaded: FileNotFoundError"):
        load_tasks(task_config(("letters",), tmp_path))


def test_missing_include_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="include_path '.*nowhere' is no folder"):
        load_tasks(task_config(("letters",), tmp_path / "nowhere"))


def test_group_without_one_score_is_compared_task_by_task(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    kit.write_letters_task(tmp_path, "one", base_oracle)
    kit.write_letters_task(tmp_path, "two", base_oracle)
    kit.write_group(tmp_path, "both", ["one", "two"], weight_by_size=False)
    results = {name: measurement(task=name, value=1.0, documents=(document(0),)) for name in ("one", "two")}

    comparisons = compare(load_tasks(task_config(("both",), tmp_path)), results, results, seed=0)

    assert [comparison.task for comparison in comparisons] == ["one", "two"]


def test_tag_stands_for_each_of_its_tasks(kit: Any, tmp_path: Path, base_oracle: Any) -> None:
    for name in ("one", "two"):
        kit.write_letters_task(tmp_path, name, base_oracle, tag="letter_tasks")

    requested = load_tasks(task_config(("letter_tasks",), tmp_path))

    assert [(one.name, one.leaves) for one in requested] == [("one", ("one",)), ("two", ("two",))]


def test_data_files_are_taken_relative_to_the_yaml(tmp_path: Path) -> None:
    files = {"test": ["a.jsonl", "/abs/b.jsonl"], "train": "https://host/c.jsonl"}
    content = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "field": "data"}}

    resolved = resolve_data_files(content, tmp_path)

    assert resolved["dataset_kwargs"] == {
        "data_files": {"test": [str(tmp_path / "a.jsonl"), "/abs/b.jsonl"], "train": "https://host/c.jsonl"},
        "field": "data",
    }
    assert content["dataset_kwargs"]["data_files"] == files


def test_data_files_of_members_of_a_group_are_taken_relative_to_the_yaml(tmp_path: Path) -> None:
    member = {"task": "one", "dataset_kwargs": {"data_files": "one.jsonl"}}

    resolved = resolve_data_files({"group": "all", "dataset_path": "json", "task": ["other", member]}, tmp_path)

    assert resolved["task"] == ["other", {"task": "one", "dataset_kwargs": {"data_files": str(tmp_path / "one.jsonl")}}]


def test_data_files_in_a_repository_on_the_hub_are_left_alone(tmp_path: Path) -> None:
    content = {"dataset_path": "owner/name", "dataset_kwargs": {"data_files": "test.jsonl"}}

    assert resolve_data_files(content, tmp_path) == content
