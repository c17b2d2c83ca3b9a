"""Evaluations with a known answer: what a damaged model really lost is counted over all questions there are.

A population of 2,000 questions has as its right answers what the base model says, but for a fifth of them. Plain
transformers counts how many of them a model damaged on purpose still answers; an evaluation sees 200 of them.
"""

import json
import shutil
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from osft.evaluation.config import EvaluationConfig
from osft.evaluation.evaluate import evaluate_forgetting
from osft.evaluation.forgetting import Outcome
from osft.evaluation.gate import judge
from osft.evaluation.measurement import DocumentMeasurement, TaskMeasurement
from osft.evaluation.pairing import compare
from osft.evaluation.tasks import load_tasks

LETTERS = "abcdefgh"
POPULATION, SAMPLE, PAIRS = 2_000, 200, 200
# Standard deviations of the noise on every weight; they cost about 3, 8 and 20 points.
DAMAGES = (0.005, 0.012, 0.025)
TASKS = tuple(f"damage_{damage}" for damage in DAMAGES)


@dataclass(frozen=True)
class Population:
    """All questions there are, with their right answers as numbers of letters."""

    questions: tuple[str, ...]
    golds: np.ndarray

    def scores(self, oracle: Any) -> np.ndarray:
        """Return ``[questions]``: 1 where the oracle's model is right, else 0."""
        return (answers(oracle, self.questions) == self.golds).astype(float)


@torch.no_grad()
def answers(oracle: Any, questions: tuple[str, ...]) -> np.ndarray:
    """Return ``[questions]``: the letter that the model finds most likely; all prompts have one length."""
    prompts = torch.tensor([oracle.prompt_ids(question) for question in questions])
    letters = [oracle.tokenizer.encode(letter)[0] for letter in LETTERS]
    return oracle.model(prompts).logits[:, -1, letters].argmax(dim=-1).numpy()


def write_task(folder: Path, name: str, population: Population, numbers: np.ndarray) -> None:
    rows = [{"question": population.questions[number], "gold": int(population.golds[number])} for number in numbers]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module")
def population(base_oracle: Any) -> Population:
    rng = np.random.default_rng(0)
    questions = tuple("".join(rng.choice(list(string.ascii_lowercase), 6)) for _ in range(POPULATION))
    golds = answers(base_oracle, questions)
    wrong = rng.random(POPULATION) < 0.2
    return Population(questions, np.where(wrong, (golds + rng.integers(1, 8, POPULATION)) % len(LETTERS), golds))


@pytest.fixture(scope="module")
def damaged_models(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    return {damage: kit.save_model(tmp_path_factory.mktemp("damaged"), damage=damage) for damage in DAMAGES}


@pytest.fixture(scope="module")
def base_scores(population: Population, base_oracle: Any) -> np.ndarray:
    return population.scores(base_oracle)


@pytest.fixture(scope="module")
def tuned_scores(
    population: Population, base_oracle: Any, damaged_models: dict[float, Path]
) -> dict[float, np.ndarray]:
    return {damage: population.scores(type(base_oracle)(folder)) for damage, folder in damaged_models.items()}


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """The numbers of the questions that an evaluation sees."""
    return np.random.default_rng(1).permutation(POPULATION)[:SAMPLE]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, population: Population, sample: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("letters", *TASKS):
        write_task(folder, name, population, sample)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the base model's measurement is kept: it is measured once."""
    return tmp_path_factory.mktemp("measurements")


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluation_finds_the_loss_of_a_damaged_model(
    base_model: Path,
    base_scores: np.ndarray,
    damaged_models: dict[float, Path],
    tuned_scores: dict[float, np.ndarray],
    sample: np.ndarray,
    tasks: Path,
    cache: Path,
    tmp_path: Path,
    damage: float,
) -> None:
    loss = base_scores.mean() - tuned_scores[damage].mean()
    config = EvaluationConfig(tasks=("letters",), include_path=tasks)

    report = evaluate_forgetting(str(base_model), str(damaged_models[damage]), config, tmp_path, cache=cache)

    (task,) = report.tasks
    assert 0.02 < loss < 0.3
    assert task.base == pytest.approx(base_scores[sample].mean())
    assert task.tuned == pytest.approx(tuned_scores[damage][sample].mean())
    assert task.ci_low <= -loss <= task.ci_high
    assert report.forgetting_upper >= loss
    assert report.passed == (report.forgetting_upper <= config.max_forgetting)


def test_undamaged_model_forgets_nothing_and_passes(base_model: Path, tasks: Path, cache: Path, tmp_path: Path) -> None:
    # The same weights in other files: another model to the cache, so that it is asked.
    tuned = shutil.copytree(base_model, tmp_path / "tuned")
    (tuned / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(base_model).save_pretrained(tuned, max_shard_size="40KB")
    config = EvaluationConfig(tasks=("letters",), include_path=tasks)

    report = evaluate_forgetting(str(base_model), str(tuned), config, tmp_path / "evaluation", cache=cache)

    assert len(list(tuned.glob("*.safetensors"))) > 1
    assert (report.forgetting, report.tasks[0].lost, report.tasks[0].gained) == (0.0, 0, 0)
    assert report.forgetting_upper < 0.02
    assert report.passed


@dataclass(frozen=True)
class Simulation:
    """What evaluations of many samples from the population find; every task lost something of its own."""

    losses: dict[str, float]
    """What each task really lost."""

    outcomes: list[Outcome]

    @property
    def forgetting(self) -> float:
        return float(np.mean(list(self.losses.values())))

    def coverage(self, task: str) -> float:
        """Return the share of the samples whose interval holds what the task really lost."""
        found = [next(one for one in outcome.tasks if one.task == task) for outcome in self.outcomes]
        return float(np.mean([one.ci_low <= -self.losses[task] <= one.ci_high for one in found]))


@pytest.fixture(scope="module")
def simulation(tasks: Path, base_scores: np.ndarray, tuned_scores: dict[float, np.ndarray]) -> Simulation:
    requested = load_tasks(EvaluationConfig(tasks=TASKS, include_path=tasks))
    rng = np.random.default_rng(2)
    outcomes = []
    for pair in range(PAIRS):
        # With replacement: each document is drawn from the population, whatever the others are.
        drawn = {task: rng.integers(POPULATION, size=SAMPLE) for task in TASKS}
        base = {task: as_measured(task, base_scores[drawn[task]]) for task in TASKS}
        tuned = {
            task: as_measured(task, scores[drawn[task]])
            for task, scores in zip(TASKS, tuned_scores.values(), strict=True)
        }
        outcomes.append(compare(requested, base, tuned, seed=pair))
    losses = [base_scores.mean() - scores.mean() for scores in tuned_scores.values()]
    return Simulation(dict(zip(TASKS, losses, strict=True)), outcomes)


def as_measured(task: str, scores: np.ndarray) -> TaskMeasurement:
    return TaskMeasurement(
        task=task,
        metric="acc",
        higher_is_better=True,
        value=float(scores.mean()),
        other_values={},
        documents=tuple(
            DocumentMeasurement(doc_id=number, fingerprint=str(number), score=score, prompt="", gold="", answer="")
            for number, score in enumerate(scores.tolist())
        ),
        version="1.0",
        num_fewshot=0,
    )


# A share of 200 pairs strays by 1.5 points around 95%; the seed is fixed, so that 93% to 97% is a sharp test.
@pytest.mark.parametrize("task", TASKS)
def test_interval_holds_the_truth_in_95_of_100_pairs(simulation: Simulation, task: str) -> None:
    coverage = simulation.coverage(task)

    assert 0.93 <= coverage <= 0.97


def test_bound_of_forgetting_is_too_low_in_at_most_5_of_100_pairs(simulation: Simulation) -> None:
    covered = np.mean([outcome.forgetting_upper >= simulation.forgetting for outcome in simulation.outcomes])

    # 95% less 1.645 standard deviations of a share of 200.
    assert covered >= 0.925


def test_gate_lets_at_most_5_of_100_models_pass_that_lost_more_than_the_limit(simulation: Simulation) -> None:
    config = EvaluationConfig(tasks=TASKS, max_forgetting=simulation.forgetting - 1e-6)

    passed = np.mean([judge(outcome, config).passed for outcome in simulation.outcomes])

    # 5% and 1.645 standard deviations of a share of 200.
    assert passed <= 0.075
