import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from osft.errors import ConfigError, EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting, measure_baseline
from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.report.forgetting_report import ForgettingReport


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
        tasks=("letters", "letters_both", "copies", "prose"), include_path=tasks, holdout=folder, batch_size=4
    )
    report = evaluate_forgetting(str(base_model), str(damaged_model), config, folder / "evaluation")
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


def test_perplexity_has_an_interval_and_worse_is_negative(run: Run) -> None:
    prose = run.task("prose")

    assert prose.metric == "word_perplexity"
    assert prose.delta == pytest.approx(prose.base - prose.tuned)
    assert prose.ci_low is not None
    assert prose.ci_high is not None
    assert prose.ci_low <= prose.delta <= prose.ci_high
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
    assert {"tasks", "forgetting", "forgetting_upper", "target_gain", "passed", "reasons", "settings"} <= set(content)
    assert {"task", "kind", "metric", "base", "tuned", "delta", "ci_low", "ci_high", "n"} <= set(content["tasks"][0])
    assert content["settings"]["chat_template_applied"] is True
    assert "should not replace the base" in (run.output / "report.html").read_text()
    assert {path.name for path in run.output.iterdir()} == {
        "forgetting.json",
        "report.html",
        "report.md",
        "samples.jsonl",
        "measurements",
        "cache",
    }


def test_damaged_model_does_not_pass(run: Run) -> None:
    assert run.report.forgetting > 0.05
    assert run.report.target_gain is not None
    assert run.report.target_gain < 0
    assert not run.report.passed


def test_same_model_forgets_nothing_and_passes(tmp_path: Path, run: Run, base_model: Path) -> None:
    config = EvaluationConfig(
        tasks=("letters", "copies"),
        include_path=run.tasks,
        limit=3,
        num_fewshot=1,
        apply_chat_template=False,
        max_forgetting=0.5,
    )

    report = evaluate_forgetting(str(base_model), str(base_model), config, tmp_path)

    assert (report.forgetting, report.target_gain, report.passed) == (0.0, None, True)
    assert [task.n for task in report.tasks] == [3, 3]
    assert report.settings["shots"] == {"letters": 1, "copies": 1}
    assert "<|im_start|>" not in (tmp_path / "samples.jsonl").read_text()


def test_models_of_which_one_formats_conversations_are_not_compared(tmp_path: Path, run: Run, base_model: Path) -> None:
    plain = Path(shutil.copytree(base_model, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    config = EvaluationConfig(tasks=("letters",), include_path=run.tasks)

    with pytest.raises(EvaluationError, match="only one of base .* and tuned .* has a chat template"):
        evaluate_forgetting(str(plain), str(base_model), config, tmp_path / "evaluation")


def test_models_whose_templates_make_other_prompts_are_not_compared(tmp_path: Path, run: Run, base_model: Path) -> None:
    other = Path(shutil.copytree(base_model, tmp_path / "other"))
    template = other / "chat_template.jinja"
    template.write_text("Please. " + template.read_text())
    config = EvaluationConfig(tasks=("letters",), include_path=run.tasks)

    with pytest.raises(EvaluationError, match="the chat templates of base .* and tuned .* make different prompts"):
        evaluate_forgetting(str(base_model), str(other), config, tmp_path / "evaluation")


def test_base_that_changed_since_it_was_measured_is_an_error(
    kit: Any, tmp_path: Path, run: Run, base_model: Path
) -> None:
    base = Path(shutil.copytree(base_model, tmp_path / "base"))
    config = EvaluationConfig(tasks=("letters",), include_path=run.tasks, limit=2)
    baseline = measure_baseline(str(base), config, tmp_path / "baseline", cache=tmp_path / "cache")
    kit.save_model(base, damage=0.2)

    with pytest.raises(EvaluationError, match="is not the one that was measured before the training"):
        evaluate_forgetting(
            str(base),
            str(base_model),
            config,
            tmp_path / "evaluation",
            cache=tmp_path / "cache",
            base_fingerprint=baseline.fingerprint,
        )


def test_task_of_a_group_may_not_have_the_name_of_the_held_out_rows(
    kit: Any, tmp_path: Path, run: Run, base_model: Path, base_oracle: Any
) -> None:
    kit.write_letters_task(tmp_path / "tasks", "holdout", base_oracle)
    kit.write_group(tmp_path / "tasks", "all", ["holdout"])
    config = EvaluationConfig(tasks=("all",), include_path=tmp_path / "tasks", holdout=run.output.parent)

    with pytest.raises(ConfigError, match="'all' and 'holdout' both contain 'holdout'"):
        evaluate_forgetting(str(base_model), str(base_model), config, tmp_path / "evaluation")


def test_baseline_names_scores_and_documents_and_the_evaluation_takes_them(
    tmp_path: Path, run: Run, base_model: Path, damaged_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EvaluationConfig(tasks=("letters", "prose"), include_path=run.tasks, limit=5)

    baseline = measure_baseline(str(base_model), config, tmp_path / "baseline", cache=tmp_path / "cache")
    with caplog.at_level("INFO", logger="osft.evaluation"):
        report = evaluate_forgetting(
            str(base_model), str(damaged_model), config, tmp_path / "evaluation", cache=tmp_path / "cache"
        )

    assert json.loads((tmp_path / "baseline" / "baseline.json").read_text())["documents"] == {"letters": 5, "prose": 3}
    assert baseline.scores == {task.task: task.base for task in report.tasks}
    assert "base: task letters (1 of 2) is known" in caplog.messages
    assert "tuned: task letters (1 of 2)" in caplog.messages


def test_training_and_data_stand_in_the_report(tmp_path: Path, run: Run, base_model: Path) -> None:
    config = EvaluationConfig(tasks=("letters",), include_path=run.tasks, limit=2)

    evaluate_forgetting(
        str(base_model),
        str(base_model),
        config,
        tmp_path,
        training={"learning_rate": 1e-5},
        data={"rows_train": 12},
    )

    content = json.loads((tmp_path / "forgetting.json").read_text())
    assert content["training"] == {"learning_rate": 1e-5}
    assert content["data"] == {"rows_train": 12}
    assert "rows train" in (tmp_path / "report.html").read_text()
