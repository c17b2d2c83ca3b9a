"""One sequence: tasks learnt one after the other with one method, and what is left of each after every one."""

import logging
import operator
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from benchmarks.sequences.bases import load_base
from benchmarks.sequences.learning import Learnt, learn
from benchmarks.sequences.methods import Method, make_ready, training_config
from benchmarks.sequences.texts import Task, base_questions, exact_match, load_tasks, write_calibration
from osft.config import TrainingConfig
from osft.subspace.attach import plain_state
from osft.subspace.memory.chain import MEMORY_FOLDER, finish_memory
from osft.subspace.memory.memory import memory_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceResult:
    """What came out of one sequence."""

    architecture: str
    method: str
    seed: int
    tasks: tuple[str, ...]
    """In the order in which they were learnt."""

    matrix: tuple[tuple[float, ...], ...]
    """``[learnt][task]``: share of each task's questions that are right once the first ``learnt + 1`` are learnt."""

    base: tuple[float, ...]
    """Share of the base's facts that are right: before the first task, and after each."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    """Processor time of each task: preparation, training, memory."""

    memory_bytes: tuple[int, ...]
    """Size of the memory's file after each task; empty without one."""

    @property
    def average_accuracy(self) -> float:
        """Mean over the tasks at the end, 0 to 1."""
        return sum(self.matrix[-1]) / len(self.tasks)

    @property
    def backward_transfer(self) -> float:
        """Mean change of all tasks but the last, from right after each was learnt to the end, -1 to 1."""
        earlier = range(len(self.tasks) - 1)
        return sum(self.matrix[-1][task] - self.matrix[task][task] for task in earlier) / max(1, len(earlier))

    @property
    def base_forgetting(self) -> float:
        """Loss of base facts over the sequence, -1 to 1."""
        return self.base[0] - self.base[-1]

    @property
    def least_learnt(self) -> float:
        """Accuracy of the task that was learnt worst, right after it was learnt."""
        return min(self.matrix[task][task] for task in range(len(self.tasks)))

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and what follows from them."""
        return asdict(self) | {
            "average_accuracy": self.average_accuracy,
            "backward_transfer": self.backward_transfer,
            "base_forgetting": self.base_forgetting,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "SequenceResult":
        """Read what :meth:`to_json` wrote."""
        lists = ("tasks", "base", "steps", "seconds", "memory_bytes")
        return cls(
            architecture=record["architecture"],
            method=record["method"],
            seed=record["seed"],
            matrix=tuple(tuple(row) for row in record["matrix"]),
            **{name: tuple(record[name]) for name in lists},
        )


def run_sequence(
    architecture: str, model_folder: Path, method: Method, *, num_tasks: int, seed: int, max_epochs: int
) -> SequenceResult:
    """Learn ``num_tasks`` tasks one after the other and measure after each.

    Args:
        architecture: names the base model in the result.
        model_folder: the base model and its tokenizer.
        method: how each task is learnt.
        num_tasks: of the domains.
        seed: of the tasks' order, their phrasings, the order of rows and what the model samples itself.
        max_epochs: most passes over a task's rows.
    """
    model, tokenizer = load_base(model_folder)
    tasks, known = load_tasks(tokenizer, num_tasks, seed), base_questions(tokenizer)
    base, matrix, learnt, sizes = [exact_match(model, known)], [], [], []
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        write_calibration(folder / "calibration.jsonl", seed)
        for number, task in enumerate(tasks):
            earlier = folder / str(number - 1) / MEMORY_FOLDER if number and method.remembers else None
            config = training_config(
                method, model_folder, folder / str(number), earlier, folder / "calibration.jsonl", seed + number
            )
            model, took = _add_task(model, task, method, config, max_epochs)
            learnt.append(took)
            matrix.append(tuple(exact_match(model, other.questions) for other in tasks))
            base.append(exact_match(model, known))
            if method.remembers:
                sizes.append(memory_file(config.checkpoint_directory / MEMORY_FOLDER).stat().st_size)
            logger.info("%s, seed %d, %s: %d steps, %.0f%% of it, %.1f%% of the base", method.name, seed, task.name,
                        took.steps, 100 * took.accuracy, 100 * base[-1])  # fmt: skip
    return SequenceResult(
        architecture=architecture,
        method=method.name,
        seed=seed,
        tasks=tuple(task.name for task in tasks),
        matrix=tuple(matrix),
        base=tuple(base),
        steps=tuple(took.steps for took in learnt),
        seconds=tuple(round(took.seconds, 2) for took in learnt),
        memory_bytes=tuple(sizes),
    )


def _add_task(
    model: PreTrainedModel, task: Task, method: Method, config: TrainingConfig, max_epochs: int
) -> tuple[PreTrainedModel, Learnt]:
    """Return a plain model that has learnt ``task``, and what it took; ``model`` is used up."""
    started = time.process_time()
    ready = make_ready(model, method, config)
    took = learn(ready, task, method.learning_rate, config.seed, max_epochs)
    if method.remembers:
        finish_memory(ready.memory, ready.model, ready.places, task.rows, config, operator.call)
    plain, _ = load_base(Path(config.model_path))
    plain.load_state_dict(plain_state(ready.model))
    return plain, replace(took, seconds=time.process_time() - started)
